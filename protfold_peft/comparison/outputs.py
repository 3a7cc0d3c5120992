"""Everything that is written from a results file: summary, tables, plots, report. `--report-only` does this alone."""

from __future__ import annotations

from pathlib import Path

from protfold_peft.comparison.analysis import analyse
from protfold_peft.comparison.plots import write_plots
from protfold_peft.comparison.report import facts_line, warnings_of, write_report
from protfold_peft.comparison.results import Results
from protfold_peft.comparison.summary import summary
from protfold_peft.comparison.tables import latex, markdown, rates_table, tables_of
from protfold_peft.errors import DataError
from protfold_peft.files import write_text

SUMMARY, MARKDOWN, LATEX, PLOTS, REPORT = "summary.md", "tables.md", "tables.tex", "plots", "report.html"


def write_outputs(results: Results, out: Path) -> list[str]:
    """Write all outputs into a folder.

    Returns:
        The summary's paragraphs.

    Raises:
        DataError: No method was judged on a set of targets.
    """
    groups = list(results.facts["config"]["targets"])
    analyses = [analyse(results, group) for group in groups]
    if not analyses[0].arms:
        raise DataError(f"{out}: no method was judged yet; run the cells, or see why they failed with --list")
    paragraphs = summary(analyses, results.facts["config"]["lora"])
    tables = [table for one in analyses for table in tables_of(one)]
    tables = [*tables, rates_table(results.facts["learning_rates"])]
    # The names of the targets are in the other outputs.
    stamp = results.facts["stamp"].split(" (")[0]
    plots = [plot for one in analyses for plot in write_plots(one, out / PLOTS, stamp)]
    warnings = warnings_of(results)
    stamped = "".join(f"> **{warning}**\n\n" for warning in warnings)
    head = f"# Comparison\n\n{stamped}"
    tail = f"\n{results.facts['leakage']} {facts_line(results)}\n"
    write_text(out / SUMMARY, head + "\n\n".join(paragraphs) + "\n" + tail)
    write_text(out / MARKDOWN, stamped + "\n".join(map(markdown, tables)))
    write_text(out / LATEX, "".join(f"% {warning}\n" for warning in warnings) + "\n".join(map(latex, tables)))
    write_report(out / REPORT, results, analyses, paragraphs, tables, plots)
    return paragraphs
