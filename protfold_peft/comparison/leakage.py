"""Was any target, or a relative of one, learnt from or chosen by? Asked before anything runs.

Sequences are compared as `protfold prepare` compares them: one local alignment, its identity, its coverage of the
shorter of the two, and what chance explains. A relative that was learnt from makes every score of that target a
memory; so the comparison is refused, unless it is wanted so, and then every output says it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from protfold_peft.comparison.config import LeakageConfig
from protfold_peft.comparison.targets import Target
from protfold_peft.data.prepare.alignment import Likeness
from protfold_peft.data.prepare.search import resolve_search, similar_pairs
from protfold_peft.errors import ConfigError
from protfold_peft.files import write_text
from protfold_peft.training.chains import TRAINING_CHAINS, RunChains


@dataclass(frozen=True)
class Offender:
    """A chain that resembles a target.

    Attributes:
        part: `train` or `validation`.
        chain: Its name.
        set: Of the target.
        target: Its name.
        identity: Of their alignment, 0..1.
        coverage: Of the shorter one, 0..1.
        chain_released: Release date of the chain, empty where unknown.
        target_released: Of the target.
    """

    part: str
    chain: str
    set: str
    target: str
    identity: float
    coverage: float
    chain_released: str
    target_released: str


@dataclass(frozen=True)
class Leakage:
    """The answer.

    Attributes:
        fingerprint: Of all that was compared, and how.
        compared: Chains that are learnt or chosen by, and targets.
        undated: Chains, and targets, without a release date: those could not be compared.
        later: Chains released on the day of the first target's release or later, by name.
        offenders: By target.
        allowed: The comparison goes on in spite of them.
    """

    fingerprint: str
    compared: tuple[int, int]
    undated: tuple[int, int]
    later: tuple[str, ...]
    offenders: tuple[Offender, ...]
    allowed: bool = False

    @property
    def note(self) -> str:
        """What was compared, and what the dates tell, in a sentence or two."""
        chains, targets = self.compared
        text = f"{chains:,} chains that are learnt or chosen by were compared with {targets:,} targets. "
        if self.later:
            text += f"{len(self.later)} of the chains were released after the first target, such as {self.later[0]}. "
        if any(self.undated):
            text += f"No release date is known of {self.undated[0]:,} chains and {self.undated[1]:,} targets."
        return text.strip()

    @property
    def stamp(self) -> str:
        """What every output has to say; empty if nothing leaked."""
        if not self.offenders:
            return ""
        targets = sorted({one.target for one in self.offenders})
        return (
            f"LEAKAGE: {len(targets)} of {self.compared[1]} targets resemble chains that were learnt from or chosen "
            f"by ({', '.join(targets[:5])}{', ...' if len(targets) > 5 else ''}): their scores prove nothing"
        )


def check_leakage(
    chains: RunChains,
    targets: Sequence[Target],
    config: LeakageConfig,
    *,
    dates: Mapping[str, str] | None = None,
    saved: Leakage | None = None,
    processes: int = 1,
) -> Leakage:
    """Compare every chain that is learnt, or judged by in validation, with every target.

    Args:
        chains: Of the runs.
        targets: Of all sets.
        config: What counts.
        dates: ISO release dates of the chains, by name, as far as they are known.
        saved: An earlier answer, given again if it is to the same question.
        processes: How many work at a time.
    """
    dates = dates or {}
    named = [("train", chain.name, chain.sequence) for chain in chains.train.chains]
    if chains.judged_on != TRAINING_CHAINS:
        named += [("validation", chain.name, chain.sequence) for chain in chains.judged]
    sequences = [target.judged_sequence for target in targets]
    question = fingerprint([*named, *sequences, config.model_dump(), sorted(dates.items())])
    if saved is not None and saved.fingerprint == question:
        return saved
    found = similar_pairs(
        [sequence for _, _, sequence in named],
        sequences,
        Likeness(config.identity, config.coverage),
        search=resolve_search(config.search),
        processes=processes,
        what="looking for leakage",
    )
    offenders = [
        Offender(
            part=named[pair.query][0],
            chain=named[pair.query][1],
            set=targets[pair.target].group,
            target=targets[pair.target].name,
            identity=round(pair.match.identity, 4),
            coverage=round(pair.match.coverage, 4),
            chain_released=dates.get(named[pair.query][1], ""),
            target_released=targets[pair.target].release_date,
        )
        for pair in found
    ]
    offenders.sort(key=lambda one: (one.set, one.target, -one.identity, one.chain))
    # ISO dates are in order as text.
    first = min((target.release_date for target in targets if target.release_date), default="")
    return Leakage(
        fingerprint=question,
        compared=(len(named), len(targets)),
        undated=(
            sum(not dates.get(name) for _, name, _ in named),
            sum(not target.release_date for target in targets),
        ),
        later=tuple(sorted(name for _, name, _ in named if first and dates.get(name, "") >= first)),
        offenders=tuple(offenders),
    )


def refuse(leakage: Leakage, file: Path) -> None:
    """Stop if anything leaked.

    Raises:
        ConfigError: Something did; it names the first and where all are listed.
    """
    if not leakage.offenders:
        return
    first = leakage.offenders[0]
    targets = {(one.set, one.target) for one in leakage.offenders}
    raise ConfigError(
        f"{len(targets)} of {leakage.compared[1]} targets resemble what is learnt or chosen by, the first "
        f"{first.set}/{first.target}: {first.part} chain {first.chain} has {100 * first.identity:.0f} % identity over "
        f"{100 * first.coverage:.0f} % of the shorter; all are in {file}: leave them out of the targets "
        "(leave_out) or of the training chains, or mark every output with --allow-leakage"
    )


def save(file: Path, leakage: Leakage) -> None:
    """Write the answer as JSON."""
    write_text(file, json.dumps(asdict(leakage), indent=1) + "\n")


def load(file: Path) -> Leakage | None:
    """A saved answer; None if there is none that can be read."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        offenders = tuple(Offender(**one) for one in content.pop("offenders"))
        tuples = {name: tuple(content[name]) for name in ("compared", "undated", "later")}
        return Leakage(**{**content, **tuples}, offenders=offenders)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def fingerprint(content: object) -> str:
    """A short hash of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
