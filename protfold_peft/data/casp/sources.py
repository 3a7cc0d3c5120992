"""Where the targets of each edition are: addresses at the Prediction Center, CAMEO and the PDB.

The addresses are those that published programs use; they could not be reached where this was written. What a file
should hold is checked when it arrives, and an address that has moved is one line to mend here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from protfold_peft.errors import ConfigError

CENTER = "https://predictioncenter.org"
CAMEO = "https://www.cameo3d.org"
PDB_ENTRY = "https://data.rcsb.org/rest/v1/core/entry/{id}"
PDB_FILE = "https://files.rcsb.org/download/{id}.cif.gz"

ARCHIVE, FASTA, DOMAINS, LIST, TARGETS = "archive", "fasta", "domains", "list", "targets"


@dataclass(frozen=True)
class Source:
    """A file to download.

    Attributes:
        name: What it is called here.
        url: Its address.
        kind: `archive` of structures, `fasta`, page of `domains`, `list` of targets (CSV), or CAMEO's `targets` (JSON).
        needed: Without it nothing can be made; the others only add to the manifest.
    """

    name: str
    url: str
    kind: str
    needed: bool = True


# Archives of evaluation domains first: a target that is in several is taken from the first.
_ARCHIVES = {
    "casp13": ("casp13.targets.T-D.4public.tar.gz", "casp13.targets.T.4public.tar.gz"),
    # Domains of targets with several, and whole targets, of which those with one domain are it.
    "casp14": ("casp14.targets.T-dom.public_11.29.2020.tar.gz", "casp14.targets.T.public_11.29.2020.tar.gz"),
    "casp15": ("casp15.targets.TS-domains.public_12.20.2022.tar.gz",),
    "casp16": ("casp16.targets_monomer_trimmed2domains.tgz",),
}
_SEQUENCES = {
    "casp13": "casp13.seq.txt",
    "casp14": "casp14.seq.txt",
    "casp15": "casp15.seq.txt",
    "casp16": "casp16.T1.seq.txt",
}
EDITIONS = tuple(_ARCHIVES)


def source_of(edition: str, center: str = CENTER) -> list[Source]:
    """The files of a CASP edition.

    Raises:
        ConfigError: There is no such edition here.
    """
    if edition not in _ARCHIVES:
        raise ConfigError(f"'{edition}' is not known: use {', '.join(EDITIONS)} or cameo")
    area = f"{center}/download_area/{edition.upper()}"
    return [
        *(Source(name, f"{area}/targets/{name}", ARCHIVE) for name in _ARCHIVES[edition]),
        Source(_SEQUENCES[edition], f"{area}/sequences/{_SEQUENCES[edition]}", FASTA),
        Source("domains_summary.html", f"{center}/{edition}/domains_summary.cgi", DOMAINS, needed=False),
        Source("targetlist.csv", f"{center}/{edition}/targetlist.cgi?type=csv", LIST, needed=False),
    ]


_PERIODS = {"1w": "1-week", "1m": "1-month", "3m": "3-months", "6m": "6-months", "1y": "1-year"}


def cameo_source(until: str, period: str, server: str = CAMEO) -> Source:
    """CAMEO's list of targets of a period that ends on a day.

    Args:
        until: ISO date.
        period: 1w, 1m, 3m, 6m or 1y.
        server: Its address.

    Raises:
        ConfigError: A date or period that is none.
    """
    if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", until):
        raise ConfigError(f"--until '{until}': write the day as 2022-12-31")
    if period not in _PERIODS:
        raise ConfigError(f"--period '{period}': use {', '.join(_PERIODS)}")
    url = f"{server}/modeling/targets/{_PERIODS[period]}/ajax/?to_date={until}"
    return Source(f"cameo_{until}_{period}.json", url, TARGETS)
