"""Replacing a set of files in a folder together: after a kill at any moment the set is wholly old or wholly new.

Files are first written into a hidden folder (the stage). Then a commit file is written into the folder, which names
the stage and the files. From then on the set is the new one: files take their names one by one, and whoever finds the
commit file later (:func:`recover`) finishes that. A stage without a commit file is removed by the next writer.

    folder/.nvtxmoe-stage-XXXX/NAME    a new file, until it takes its name
    folder/.nvtxmoe-stage-XXXX/old/    the earlier files, to put them back if one cannot be replaced
    folder/.nvtxmoe-commit             {"stage": ".nvtxmoe-stage-XXXX", "write": [NAME], "remove": [NAME]}

Locks (flock, which end with the process) keep two programs apart: on the folder while files take their names, on a
stage while its writer lives. Where a file system has no locks, stages that were left stay.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe.special_files import refuse_special
from nvtxmoe_analysis.core.files import STAGE_PREFIX, check_file

COMMIT = f"{STAGE_PREFIX}commit"
SET_PREFIX = f"{STAGE_PREFIX}stage-"
#: Folder in a stage with the earlier files.
OLD = "old"


class _Commit(NamedTuple):
    stage: Path
    write: tuple[str, ...]
    remove: tuple[str, ...]


@contextlib.contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """Yield a new hidden folder in ``folder`` to write files into, for :func:`replace_set`. It goes in the end.

    A set whose replacing was interrupted is finished first, and stages of writers that were killed are removed.

    Raises:
        NvtxmoeError: an interrupted replacing cannot be finished.
        OSError: ``folder`` cannot be written.
    """
    with _locked(folder):
        _finish(folder)
        _remove_dead_stages(folder)
        stage = Path(tempfile.mkdtemp(prefix=SET_PREFIX, dir=folder))
        lock = _lock(stage, fcntl.LOCK_EX)
    try:
        yield stage
    finally:
        if not _committed(folder, stage):
            shutil.rmtree(stage, ignore_errors=True)
        os.close(lock)


def check_set(folder: Path, names: Sequence[str]) -> None:
    """Refuse names in a folder at which there is a folder, device, FIFO or socket.

    Symbolic links pass. The new file replaces the link itself, and the file to which it leads stays as it is: it may be
    on another file system, and so could not be replaced together with the others.

    Raises:
        NvtxmoeError: a folder, device, FIFO or socket is there.
    """
    for name in names:
        if not (folder / name).is_symlink():
            check_file(folder / name)


def replace_set(folder: Path, stage: Path, write: Sequence[str], remove: Sequence[str] = ()) -> None:
    """Give files of a stage their names in ``folder`` and remove others, all or none. Further files stay as they are.

    If a file cannot be replaced, the earlier ones are put back. If that fails too, the commit file stays, and
    :func:`recover` finishes the new set.

    Parameters:
        write: names of files in ``stage``, which replace those of the same name.
        remove: names of files that go, if they are there.

    Raises:
        NvtxmoeError: a folder, device, FIFO or socket is at a name, or the earlier files could not be put back.
        OSError: a file cannot be replaced; the earlier ones are back.
    """
    check_set(folder, (*write, *remove))
    commit = _Commit(stage, tuple(write), tuple(remove))
    (stage / OLD).mkdir()
    for name in write:
        _sync(stage / name)
    draft = stage / COMMIT
    draft.write_text(json.dumps({"stage": stage.name, "write": commit.write, "remove": commit.remove}))
    _sync(draft)
    _sync(stage)
    with _locked(folder):
        _finish(folder)
        try:
            draft.rename(folder / COMMIT)
            _sync(folder)
            _place(folder, commit)
            _sync(folder)
            (folder / COMMIT).unlink()
        except BaseException as error:
            if _committed(folder, stage):
                _put_back(folder, commit, error)
            raise


def recover(folder: Path) -> None:
    """Finish a replacing that was interrupted in ``folder``; wait for one that is going on. Else do nothing.

    Raises:
        NvtxmoeError: it cannot be finished, for example because the folder is not writable.
    """
    if os.path.lexists(folder / COMMIT):
        with _locked(folder):
            _finish(folder)


def _place(folder: Path, commit: _Commit) -> None:
    """Move the earlier files into the stage, and the new ones to their names."""
    for name in (*commit.write, *commit.remove):
        if os.path.lexists(folder / name):
            (folder / name).replace(commit.stage / OLD / name)
        if name in commit.write:
            (commit.stage / name).replace(folder / name)


def _put_back(folder: Path, commit: _Commit, cause: BaseException) -> None:
    """Undo as much of :func:`_place` as was done, which the folders show. A kill on the way leaves the commit file."""
    try:
        for name in commit.write:
            if not (commit.stage / name).exists():
                (folder / name).replace(commit.stage / name)
        for old in list((commit.stage / OLD).iterdir()):
            old.replace(folder / old.name)
        (folder / COMMIT).unlink()
    except OSError as error:
        reason = getattr(cause, "strerror", None) or cause
        what = f"cannot replace the files: {reason}; the earlier ones could not be put back: {error.strerror or error}"
        remedy = "Make room or make the folder writable: the next nvtxmoe that reads or writes it finishes the new set"
        raise NvtxmoeError(what, where=folder, remedy=remedy) from cause


def _finish(folder: Path) -> None:
    """Give the files of a commit their names, those that do not have them yet. The folder is locked."""
    path = folder / COMMIT
    try:
        commit = _read(path)
        if commit is None:
            return
        for name in commit.write:
            if (commit.stage / name).exists():
                (commit.stage / name).replace(folder / name)
        for name in commit.remove:
            (folder / name).unlink(missing_ok=True)
        _sync(folder)
        path.unlink()
    except OSError as error:
        what = f"nvtxmoe was killed while it replaced files, which cannot be finished now: {error.strerror or error}"
        raise NvtxmoeError(what, where=path, remedy="Make the folder writable, or make room") from error
    shutil.rmtree(commit.stage, ignore_errors=True)


def _read(path: Path) -> _Commit | None:
    """The commit of a folder, None if there is none. Names with a folder in them are refused."""
    refuse_special(path)
    try:
        text = path.read_text()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        text = ""
    try:
        journal = json.loads(text)
        names = [journal["stage"], *journal["write"], *journal["remove"]]
        if all(_is_plain(name) for name in names) and journal["stage"].startswith(SET_PREFIX):
            return _Commit(path.with_name(journal["stage"]), tuple(journal["write"]), tuple(journal["remove"]))
    except (ValueError, KeyError, TypeError):
        pass
    raise NvtxmoeError("damaged: not a commit of nvtxmoe", where=path, remedy="Remove it, then run the analysis again")


def _is_plain(name: object) -> bool:
    return isinstance(name, str) and Path(name).name == name and name not in {"", ".", ".."} and "\0" not in name


def _committed(folder: Path, stage: Path) -> bool:
    """Whether the folder's commit file names this stage."""
    with contextlib.suppress(NvtxmoeError, OSError):
        commit = _read(folder / COMMIT)
        return commit is not None and commit.stage.name == stage.name
    return False


def _remove_dead_stages(folder: Path) -> None:
    """Remove stages whose writers have ended, as their locks show. No commit names one."""
    for stage in folder.glob(f"{SET_PREFIX}*"):
        with contextlib.suppress(OSError):
            fd = os.open(stage, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(stage, ignore_errors=True)
            finally:
                os.close(fd)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other programs that use this module from the folder meanwhile, if its file system has locks."""
    fd = _lock(folder, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(fd)


def _lock(folder: Path, operation: int) -> int:
    """Open a folder and lock it, waiting if need be. Returns what to close."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(fd, operation)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _sync(path: Path) -> None:
    """Have a file or folder on the disk, where the file system can do so."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP, errno.EROFS}:
            raise
    finally:
        os.close(fd)
