"""The file that a text cache spills to: what is read by several threads at once is what was written."""

import os
import threading

import pytest
import torch

from softprompt.engine import disk_spill
from softprompt.engine.disk_spill import DiskSpill
from softprompt.errors import SoftPromptError

ROWS = [torch.full((size,), fill, dtype=torch.uint8) for size, fill in ((96, 1), (96, 2))]


@pytest.fixture(params=[True, False], ids=["positioned", "in-turns"])
def spill(request, tmp_path, monkeypatch):
    monkeypatch.setattr(disk_spill, "POSITIONED_READS", request.param and disk_spill.POSITIONED_READS)
    spill = DiskSpill(tmp_path)
    yield spill
    spill.close()


def test_rows_come_back(spill):
    places = [spill.put(row) for row in ROWS]
    assert places == [0, 96]
    for place, row in zip(places[::-1], ROWS[::-1], strict=True):
        assert torch.equal(spill.get(place, len(row)), row)
    assert torch.equal(spill.get(90, 12), torch.cat(ROWS)[90:102])


def test_a_file_that_has_become_shorter(spill):
    spill.put(ROWS[0])
    os.ftruncate(spill._file.fileno(), 50)
    with pytest.raises(SoftPromptError, match="has become shorter; start again"):
        spill.get(0, 96)


def in_threads(*calls):
    results, threads = {}, []
    for which, call in enumerate(calls):
        threads.append(threading.Thread(target=lambda which=which, call=call: results.update({which: call()})))
        threads[-1].start()
    for thread in threads:
        thread.join()
    return [results.get(which) for which in range(len(calls))]


@pytest.mark.skipif(not disk_spill.POSITIONED_READS, reason="this system reads at the file's own position only")
def test_reads_of_two_threads_interleave(tmp_path, monkeypatch):
    """Each takes a few bytes at a time, in turns with the other, and a third row is written meanwhile."""
    spill, real, barrier = DiskSpill(tmp_path), os.preadv, threading.Barrier(2)
    places = [spill.put(row) for row in ROWS]

    def few(descriptor, buffers, position):
        barrier.wait(60)
        count = real(descriptor, [buffers[0][:8]], position)
        if barrier.wait(60) == 0:
            spill.put(ROWS[0])
        return count

    monkeypatch.setattr(os, "preadv", few)
    for found, row in zip(in_threads(*(lambda p=p: spill.get(p, 96) for p in places)), ROWS, strict=True):
        assert torch.equal(found, row)
    spill.close()


@pytest.mark.parametrize("other", ["get", "put"])
def test_without_positioned_reads_threads_take_turns(other, tmp_path, monkeypatch):
    """A thread that comes between another's seek and read has to wait."""
    monkeypatch.setattr(disk_spill, "POSITIONED_READS", False)
    spill, came, sought = DiskSpill(tmp_path), threading.Event(), threading.Event()
    places = [spill.put(row) for row in ROWS]
    real_file, real_lock = spill._file, spill._lock

    class Lock:
        """Notes who asks for it while another is between seek and read."""

        def __enter__(self):
            if sought.is_set():
                came.set()
            real_lock.acquire()

        def __exit__(self, *_):
            real_lock.release()

    class File:
        def seek(self, place):
            real_file.seek(place)
            if not sought.is_set():
                sought.set()
                assert came.wait(60)  # the other thread asks for the lock, or has moved the position already

        def __getattr__(self, name):
            return getattr(real_file, name)

    def second():
        assert sought.wait(60)
        try:
            return spill.get(places[1], 96) if other == "get" else spill.put(ROWS[1])
        finally:
            came.set()

    spill._lock, spill._file = Lock(), File()
    first, then = in_threads(lambda: spill.get(places[0], 96), second)
    assert torch.equal(first, ROWS[0])
    assert torch.equal(then, ROWS[1]) if other == "get" else then == 192
    spill.close()
