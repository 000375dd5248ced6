"""How tensors are measured: the arguments that audits and comparisons share, checked."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from math import inf
from numbers import Integral
from typing import Any, NamedTuple

from opnorm.bounds.memory import machine_memory
from opnorm.checks import check_time_limit, check_tolerance, require, to_flag

Globs = str | Sequence[str] | None


class Settings(NamedTuple):
    """How tensors are measured."""

    tolerance: float | None = None
    time_limit: float | None = None  # seconds for each reading of a tensor
    spectra: bool = False
    memory_limit: float = inf  # bytes for one tensor
    subspaces: bool = False  # of comparisons


class Options(NamedTuple):
    """The arguments of an audit or a comparison, as they were given: what another process is told."""

    include: Globs = None
    exclude: Globs = None
    tolerance: float | None = None
    time_limit: float | None = None
    memory_limit: int | None = None
    jobs: int = 1
    spectra: bool = False
    network: bool = True
    subspaces: bool = False

    def checked(self) -> Settings:
        """Return the settings, the memory shared by the jobs; None is the default of each, of the memory the machine's.

        Raises:
            ValueError: When an argument does not make sense, with its name and value.
        """
        for name in ("include", "exclude"):
            value = getattr(self, name)
            require(_is_globs(value), name, "must be a pattern or a list of patterns, none of them empty", value)
        to_flag("spectra", self.spectra)
        to_flag("network", self.network)
        to_flag("subspaces", self.subspaces)
        require(_is_positive_integer(self.jobs), "jobs", "must be a positive integer", self.jobs)
        limited = self.memory_limit is None or _is_positive_integer(self.memory_limit)
        require(limited, "memory_limit", "must be a positive integer, in bytes", self.memory_limit)
        check_time_limit(self.time_limit)
        tolerance = None if self.tolerance is None else check_tolerance(self.tolerance)
        room = machine_memory() if self.memory_limit is None else self.memory_limit
        return Settings(tolerance, self.time_limit, self.spectra, room // self.jobs, self.subspaces)

    def chooses(self, name: str) -> bool:
        """Return whether a tensor of that name is asked for."""
        return (not self.include or _matches(name, self.include)) and not _matches(name, self.exclude)


def check_running(sandbox: Any, progress: Any, cluster: Any = None) -> None:
    """Raise a `ValueError` unless `sandbox` is a flag, `progress` can be called, and `cluster` is an address."""
    to_flag("sandbox", sandbox)
    require(progress is None or callable(progress), "progress", "must be None or a function of two numbers", progress)
    addressed = cluster is None or (isinstance(cluster, str) and cluster != "")
    require(addressed, "cluster", 'must be None, "local", or the address of a scheduler', cluster)
    require(not (cluster and sandbox), "cluster", "cannot be had with `sandbox`: its workers read the file", cluster)


def _matches(name: str, globs: Globs) -> bool:
    return any(fnmatchcase(name, glob) for glob in ([globs] if isinstance(globs, str) else globs or ()))


def _is_globs(value: Any) -> bool:
    several = isinstance(value, list | tuple) and all(isinstance(glob, str) and glob for glob in value)
    return value is None or (isinstance(value, str) and value != "") or several


def _is_positive_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1
