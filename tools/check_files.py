"""Whether files are fit to commit: not large, no merge marker, no white space at a line's end, one newline at the file's.

    python tools/check_files.py [FILE ...]      # without names, every file that git tracks

Prints what is wrong, a line each, and exits with 1. The bundled model's own files may be large, and binary files are read
for their size only.
"""

import argparse
import subprocess
from collections.abc import Iterator
from pathlib import Path

LARGEST = 500_000  # bytes
MAY_BE_LARGE = ("models/",)
MARKERS = (b"<<<<<<< ", b">>>>>>> ")


def complaints(path: Path) -> Iterator[str]:
    """What is wrong with a file."""
    content = path.read_bytes()
    if len(content) > LARGEST and not path.as_posix().startswith(MAY_BE_LARGE):
        yield f"{path}: {len(content)} bytes, at most {LARGEST} allowed"
    if b"\0" in content:
        return
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.startswith(MARKERS):
            yield f"{path}:{number}: merge marker"
        if line != line.rstrip() and path.suffix != ".md":  # two spaces break a line in Markdown
            yield f"{path}:{number}: white space at the end of the line"
    if content and (not content.endswith(b"\n") or content.endswith(b"\n\n")):
        yield f"{path}: expected one newline at the end"


def main() -> None:
    """Check the named files, or all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path)
    files = parser.parse_args().files
    if not files:
        listed = subprocess.run(["git", "ls-files", "-z"], check=True, capture_output=True, text=True).stdout
        files = [Path(name) for name in listed.split("\0") if name]
    found = [line for path in files if path.is_file() for line in complaints(path)]
    print("\n".join(found) or f"{len(files)} files are fit to commit")
    if found:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
