"""Which version of the pool runs."""

from importlib.metadata import PackageNotFoundError, version


def installed_version() -> str:
    """Return the version that is installed; `0` for a checkout that is not."""
    try:
        return version("mlx-pool")
    except PackageNotFoundError:
        return "0"
