"""``python -m onnxvitq``."""

import sys

from onnxvitq.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
