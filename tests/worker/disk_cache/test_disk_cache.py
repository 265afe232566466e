"""The disk cache: what is put there is found by its owners and by nobody else, whatever happens to the disk."""

import logging
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.support.disk_cache_rig import Rig, entry
from worker.disk_cache import folder as folders
from worker.disk_cache.block_names import BLOCK
from worker.disk_cache.cache import MIN_TOKENS
from worker.disk_cache.folder import CacheFolder, DiskCacheError

ROOT = Path(__file__).resolve().parents[3]
LONG = list(range(1000, 1000 + 5 * BLOCK + 17))
RigOf = Callable[..., Rig]


def test_other_processes_find_what_one_has_put(rig: RigOf) -> None:
    """Whole blocks of it, and as much as two prompts have in common."""
    rig().put(entry(LONG))
    other = rig()
    assert other.covered(LONG) == 5 * BLOCK
    assert other.covered([*LONG[: 3 * BLOCK + 5], 7, 7, 7]) == 3 * BLOCK
    assert other.covered([7, *LONG]) == 0


def test_longer_conversation_adds_only_what_is_new(rig: RigOf) -> None:
    """The files of its beginning are shared."""
    one = rig()
    one.put(entry(LONG))
    before = {path: path.stat().st_ino for path in one.files()}
    one.put(entry([*LONG, *range(2 * BLOCK)]))
    after = {path: path.stat().st_ino for path in one.files()}
    assert len(after) == 7
    assert before.items() <= after.items()


def test_tenants_and_models_find_nothing_of_each_other(rig: RigOf) -> None:
    """The same tokens of another tenant, or of another model, are not there."""
    one = rig()
    one.put(entry(LONG, tenant="a"))
    for stranger in ("b", "", "A", "a "):
        assert one.covered(LONG, tenant=stranger) == 0
    assert rig(model="n").covered(LONG, tenant="a") == 0
    assert one.covered(LONG, tenant="a") == 5 * BLOCK


def test_nothing_can_be_read_from_names(rig: RigOf, tmp_path: Path) -> None:
    """Hashes with a key of the folder's own: elsewhere the same prompt has other names. All of it is private."""
    rig().put(entry(LONG, tenant="alice", whole=True))
    other = Rig(tmp_path / "other")
    other.put(entry(LONG, tenant="alice", whole=True))
    names = [path.relative_to(tmp_path / "prefixes").as_posix() for path in rig().files()]
    assert len(names) == 6
    assert not {Path(name).name for name in names} & {path.name for path in other.files()}
    assert all(set(name) <= set("0123456789abcdef/.safetensors") for name in names)
    for path in (tmp_path / "prefixes").rglob("*"):
        if path.name != folders.TAG_NAME:
            assert path.stat().st_mode & 0o077 == 0


def test_what_memory_has_is_not_read(rig: RigOf) -> None:
    """Unless there is clearly more of it on disk; short prompts are not even asked for."""
    one = rig()
    one.put(entry(LONG))
    assert one.lookup(LONG, beyond=5 * BLOCK - MIN_TOKENS).length == 5 * BLOCK
    assert one.lookup(LONG, beyond=5 * BLOCK - MIN_TOKENS + 1).found is None
    assert one.disk_cache.lookup_prefix("t", np.asarray(LONG), beyond=len(LONG) - MIN_TOKENS + 1) is None
    one.put(entry(range(MIN_TOKENS - 1)))
    assert len(one.files()) == 5


def test_snapshots_are_found_whole_or_not_at_all(rig: RigOf) -> None:
    """What can't be cut is there for exactly its tokens; of several, the longest that fits."""
    one = rig(whole=True)
    one.put(entry(LONG[:300], whole=True), entry(LONG, whole=True))
    other = rig(whole=True)
    assert other.covered([*LONG, 1]) == len(LONG)
    assert other.covered(LONG[:-1]) == 300
    assert other.covered(LONG[:299]) == 0
    found = other.lookup(LONG).found
    assert found is not None
    assert found.whole["1.0"].bits.tolist() == [len(LONG)]


@pytest.mark.parametrize("whole", [False, True])
def test_damaged_file_is_a_miss_and_goes(rig: RigOf, whole: bool) -> None:
    """What comes before it still is of use, where caches can be cut; the file is written anew the next time."""
    one = rig(whole=whole)
    one.put(entry(LONG, whole=whole))
    by_size = sorted(one.files(), key=lambda path: path.stat().st_mtime, reverse=True)
    broken = by_size[3]
    broken.write_bytes(broken.read_bytes()[:-5])
    other = rig(whole=whole)
    assert other.covered(LONG) == (0 if whole else 3 * BLOCK)
    assert not broken.exists()
    other.put(entry(LONG, whole=whole))
    assert other.covered(LONG) == (len(LONG) if whole else 5 * BLOCK)


def test_lost_file_is_a_miss(rig: RigOf) -> None:
    """Others clear up, too: what follows a gap is of no use."""
    one = rig()
    one.put(entry(LONG))
    newest_first = one.files()[::-1]
    newest_first[2].unlink()
    assert one.covered(LONG) == 2 * BLOCK
    newest_first[0].unlink()
    assert one.covered(LONG) == 0


def test_room_is_bounded_and_ends_go_before_beginnings(rig: RigOf) -> None:
    """The least recently used go first; of one prompt, its end."""
    size = len(entry(LONG[:BLOCK]).contents.per_token["0.keys"].bits[..., :BLOCK, :].tobytes()) + 400
    one = rig(max_bytes=12 * size)
    one.put(entry(LONG))
    old = list(range(50_000, 50_000 + 5 * BLOCK))
    one.put(entry(old))
    assert one.covered(LONG) == 5 * BLOCK
    one.put(entry(range(90_000, 90_000 + 5 * BLOCK)))
    assert sum(path.stat().st_size for path in one.files()) <= 12 * size
    assert one.covered(LONG) == 5 * BLOCK
    assert one.covered(old) in (0, 2 * BLOCK, 3 * BLOCK)
    assert one.disk_cache.used_bytes == sum(path.stat().st_size for path in one.files())


def test_flood_of_one_tenant_leaves_others_their_share(rig: RigOf) -> None:
    """However much one puts there, another keeps what is less than half."""
    size = len(entry(LONG[:BLOCK]).contents.per_token["0.keys"].bits[..., :BLOCK, :].tobytes()) + 400
    one = rig(max_bytes=12 * size)
    one.put(entry(LONG, tenant="a"))
    for start in range(0, 50_000, 5_000):
        one.put(entry(range(start, start + 4 * BLOCK), tenant="flood"))
    assert one.covered(LONG, tenant="a") == 5 * BLOCK


def test_full_disk_is_a_word_in_the_log_and_nothing_else(rig: RigOf, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing more is written, what is there is found; no half file is left."""
    one = rig()
    one.put(entry(LONG))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with caplog.at_level(logging.WARNING, "worker"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        try:
            one.put(entry(range(4 * BLOCK)))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "prefixes are not written to disk for 600 s: File too large" in caplog.text
    assert [path for path in one.path.rglob(".*") if path.is_file()] == []
    one.put(entry(range(4 * BLOCK)))
    assert one.covered(LONG) == 5 * BLOCK
    assert one.covered(range(4 * BLOCK)) == 0


def test_cleared_cache_has_nothing(rig: RigOf) -> None:
    """Of no model and no tenant; what comes later is kept again."""
    one = rig()
    one.put(entry(LONG, tenant="a"), entry(LONG, tenant="b"))
    rig(model="n").put(entry(LONG))
    one.disk_cache.clear()
    assert one.disk_cache.flush(5)
    assert one.files() == []
    assert one.covered(LONG, tenant="a") == 0
    one.put(entry(LONG))
    assert one.covered(LONG) == 5 * BLOCK


def test_folder_that_cant_be_had_is_refused(tmp_path: Path) -> None:
    """The message says which and why; a folder that others could read is closed to them."""
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskCacheError, match=r"file/prefixes: Not a directory"):
        CacheFolder(tmp_path / "file" / "prefixes", 1 << 20)
    (tmp_path / "open").mkdir(mode=0o755)
    CacheFolder(tmp_path / "open", 1 << 20)
    assert (tmp_path / "open").stat().st_mode & 0o777 == 0o700


def test_drafts_of_the_dead_are_removed(rig: RigOf) -> None:
    """Those of a process that was killed while it wrote; not those that are being written."""
    one = rig()
    one.put(entry(LONG))
    tenant = one.files()[0].parent
    for name, age_s in ((".old.1.0", folders.ABANDONED_S + 5), (".new.1.0", 0.0)):
        (tenant / name).write_text("half")
        os.utime(tenant / name, (time.time() - age_s,) * 2)
    rig()
    assert sorted(path.name for path in tenant.iterdir() if path.name.startswith(".")) == [".new.1.0"]


CROWD = """
import random, sys
from pathlib import Path
sys.path[:0] = [{root!r}]
from tests.support.disk_cache_rig import Rig, entry
source = random.Random({seed})
rig = Rig(Path({path!r}), max_bytes=120_000)
found = 0
for _ in range(60):
    start = source.randrange(6) * 5000
    rig.put(entry(range(start, start + 600), tenant=source.choice("ab")))
    found += rig.covered(range(start, start + 640), tenant=source.choice("ab")) > 0
print(found)
"""


def test_processes_share_a_folder_that_is_too_small(rig: RigOf) -> None:
    """They write, read and clear up at the same time: what is found is right, and nobody fails."""
    first = rig(max_bytes=120_000)
    codes = [CROWD.format(root=str(ROOT), path=str(first.path), seed=seed) for seed in range(3)]
    crowd = [subprocess.Popen([sys.executable, "-W", "error", "-c", code], **PIPES) for code in codes]
    said = [process.communicate(timeout=60) for process in crowd]
    assert [process.returncode for process in crowd] == [0, 0, 0], said
    assert [errors for _, errors in said] == ["", "", ""]
    assert sum(int(out) for out, _ in said) > 0
    first.put(entry(LONG))
    assert sum(path.stat().st_size for path in first.files()) <= 120_000 + 40_000


PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
