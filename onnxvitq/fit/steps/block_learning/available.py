"""Whether blocks can be learned on this machine; asked before anything slow is done."""

from importlib.util import find_spec

from onnxvitq.core.errors import ConfigError


def require_torch() -> None:
    """Do nothing where torch is installed.

    Raises:
        ConfigError: it is not.
    """
    if find_spec("torch") is None:
        raise ConfigError("--method aiqvit", "needs torch, which is not installed", "pip install 'onnxvitq[torch]'")
