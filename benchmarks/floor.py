"""The least time that folding one sequence takes on a chip, by the operations and bytes of every part.

    python benchmarks/floor.py                                   # the rates that an H100 reached
    python benchmarks/floor.py --rate 100 --bandwidth 0.9        # another chip

Rates are in 10^12 operations and 10^12 bytes a second. True size, bf16, batch 1, no recycles; a pass more takes as long
again as the trunk and the structure module. What is counted: `protfold_peft/benchmarks/floor.py`.
"""

from __future__ import annotations

import argparse

from protfold_peft.benchmarks.floor import table


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=798, help="of a product of two 8192 x 8192 bf16 matrices")
    parser.add_argument("--bandwidth", type=float, default=3.0, help="of a copy within the memory")
    parser.add_argument("--lengths", type=int, nargs="+", default=(128, 256, 512, 1024))
    options = parser.parse_args()
    print("\n".join(table(tuple(options.lengths), options.rate * 1e12, options.bandwidth * 1e12)))


if __name__ == "__main__":
    main()
