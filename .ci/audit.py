"""Look the installed packages up among known vulnerabilities, with pip-audit.

Exit status 1 if one is known. A service that cannot be reached, or does not know the packages, is told and is no
failure: it says nothing about them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

SECONDS = 300


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "audit.json")
        command = [sys.executable, "-m", "pip_audit", "--progress-spinner", "off", "--format", "json"]
        command += ["--skip-editable", "--output", str(report)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        except subprocess.TimeoutExpired:
            print(f"audit: NOT DONE: the vulnerability service gave no answer in {SECONDS} s")
            return 0
        if not report.is_file():
            reason = (done.stderr.strip() or "pip-audit gave no reason").splitlines()[-1]
            if "pip_audit" in reason and "No module" in reason:
                print("audit: pip-audit is not installed: pip install pip-audit")
                return 2
            print(f"audit: NOT DONE: {reason}")
            return 0
        packages = json.loads(report.read_text())["dependencies"]
    unknown = [package["name"] for package in packages if "skip_reason" in package]
    found = [
        f"{package['name']} {package['version']}: {each['id']} (fixed in {', '.join(each['fix_versions']) or 'none'})"
        for package in packages
        for each in package.get("vulns", ())
    ]
    audited = len(packages) - len(unknown)
    if not audited:
        print(f"audit: NOT DONE: the vulnerability service knows none of the {len(packages)} packages")
        return 0
    print(f"audit: {audited} packages looked up, {len(found)} known vulnerabilities")
    if unknown:
        print(f"audit: not looked up: {', '.join(unknown)}")
    print(*found, sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
