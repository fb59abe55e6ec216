"""The tools' folder is the last on the path: what is called as a module there must not hide one that a library wants."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "tools"))
