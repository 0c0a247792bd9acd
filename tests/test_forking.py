"""Processes that are forked from one that uses a model: each is able to go on by itself, and no harm to its parent."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from bge_integrations import BgeEncoder
from bge_integrations.backend.engines.openvino.library import ov
from bge_integrations.backend.guarantees import forks as forking

_LONG = 60.0
_FORKS = int(os.environ.get("BGE_FORKS", "20"))
"""Under load; some hundreds show what happens to one in fifty."""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
class TestForking:
    """Each in a process of its own: a child that hangs must not hang the tests."""

    @staticmethod
    def _run(folder: Path, body: str, *engines: str) -> None:
        script = f"""
import ctypes, multiprocessing, os, signal, sys, threading, warnings
warnings.simplefilter("ignore")
import numpy as np
from bge_integrations import BgeEncoder

def work(encoder, texts, expected):
    assert np.abs(encoder.encode_documents(texts) - expected).max() < 1e-5
    assert np.abs(encoder.encode_queries(texts[:3]) - encoder.encode_queries(texts)[:3]).max() < 1e-5

unseen_fork = ctypes.PyDLL(None).fork  # as in a server written in C, so that Python does not know of it

def in_child(encoder, texts, expected, fork=os.fork):
    pid = fork()
    if pid == 0:
        signal.alarm(100)  # ends one that hangs
        work(encoder, texts, expected)
        sys.exit(7 if encoder.client is not None else 8)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

class Busy:
    # Threads that do some work again and again, until the block ends.
    def __init__(self, *works):
        self.ended = threading.Event()
        self.threads = [threading.Thread(target=self.repeat, args=(work,)) for work in works]

    def repeat(self, work):
        while not self.ended.is_set():
            work()

    def __enter__(self):
        for thread in self.threads:
            thread.start()

    def __exit__(self, *_):
        self.ended.set()
        for thread in self.threads:
            thread.join()

if __name__ == "__main__":
    encoder = BgeEncoder(sys.argv[1], device="cpu", engine=sys.argv[2], on_truncation="ignore", batch_tokens=64)
    texts = [f"fox {{index}} " + "dog " * (index % 50) for index in range(60)]
    expected = encoder.encode_documents(texts)
{textwrap.indent(textwrap.dedent(body), "    ")}
    print("done")
"""
        file = folder.parent / "forking.py"
        file.write_text(script, encoding="utf-8")
        for engine in engines:
            done = subprocess.run(
                [sys.executable, str(file), str(folder), engine],
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            assert (done.returncode, done.stdout) == (0, "done\n"), f"{engine}: {done.stdout} {done.stderr}"

    def test_after_use(self, bge_small_en: Path) -> None:
        self._run(
            bge_small_en,
            "assert in_child(encoder, texts, expected) == 7; work(encoder, texts, expected)",
            "openvino",
            "torch",
            "sentence-transformers",
        )

    @pytest.mark.slow
    def test_in_the_middle_of_work(self, bge_small_en: Path) -> None:
        self._run(
            bge_small_en,
            """
            many = threading.Thread(target=lambda: [encoder.encode_documents(texts) for _ in range(20)])
            many.start()
            codes = [in_child(encoder, texts, expected) for _ in range(3)]
            many.join()
            assert codes == [7, 7, 7], codes
            """,
            "torch",  # OpenVINO below
        )

    @pytest.mark.slow
    def test_while_other_threads_load(self, bge_small_en: Path) -> None:
        self._run(
            bge_small_en,
            """
            from bge_integrations.backend.checkpoint import files as checkpoint
            from bge_integrations.backend.loading import model as loading

            parent, inside, go = os.getpid(), threading.Semaphore(0), threading.Event()

            def holding(load):
                def held(*args):
                    if os.getpid() == parent:
                        inside.release()
                        assert go.wait(100)
                    return load(*args)
                return held

            checkpoint.file_digest = holding(checkpoint.file_digest)
            loading.load_source = holding(loading.load_source)
            other = BgeEncoder.from_settings(encoder.settings.replace(threads=1), load=False)
            loaders = [threading.Thread(target=lambda: other.client), threading.Thread(target=lambda: encoder.client)]
            for loader in loaders:
                loader.start()
                assert inside.acquire(timeout=100)
            assert in_child(other, texts, expected) == 7
            assert in_child(encoder, texts, expected) == 7
            go.set()
            for loader in loaders:
                loader.join()
            work(other, texts, expected)
            """,
            "openvino",
        )

    @pytest.mark.slow
    def test_several_children_side_by_side_and_a_grandchild(self, bge_small_en: Path) -> None:
        self._run(
            bge_small_en,
            """
            context = multiprocessing.get_context("fork")
            children = [context.Process(target=work, args=(encoder, texts, expected)) for _ in range(3)]
            for child in children:
                child.start()
            for child in children:
                child.join()
            assert [child.exitcode for child in children] == [0, 0, 0]
            pid = os.fork()
            if pid == 0:
                work(encoder, texts, expected)
                sys.exit(in_child(encoder, texts, expected))
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
            """,
            "openvino",
        )

    @pytest.mark.slow
    def test_in_the_workers_of_a_data_loader(self, bge_small_en: Path) -> None:
        self._run(
            bge_small_en,
            """
            from torch.utils.data import DataLoader

            loader = DataLoader(
                texts,
                batch_size=20,
                num_workers=2,
                multiprocessing_context="fork",
                collate_fn=encoder.encode_documents,
                timeout=100,
            )
            found = np.concatenate(list(loader))
            assert np.abs(found - expected).max() < 1e-5
            """,
            "openvino",
        )

    @pytest.mark.parametrize("method", ["spawn", "forkserver"])
    def test_other_ways_to_start_a_process_pickle_settings(self, bge_small_en: Path, method: str) -> None:
        self._run(
            bge_small_en,
            f"""
            many = threading.Thread(target=lambda: [encoder.encode_documents(texts) for _ in range(5)])
            many.start()  # pickled while it is busy
            child = multiprocessing.get_context({method!r}).Process(target=work, args=(encoder, texts, expected))
            child.start()
            child.join()
            many.join()
            assert child.exitcode == 0
            """,
            "openvino",
        )

    @pytest.mark.slow
    def test_that_python_knows_nothing_of(self, bge_small_en: Path) -> None:
        self._run(
            bge_small_en,
            """
            from bge_integrations.langchain import HuggingFaceBgeEmbeddings

            codes = [in_child(encoder, texts, expected, unseen_fork) for _ in range(2)]
            assert codes == [7, 7], codes
            pid = unseen_fork()
            if pid == 0:  # what its parent has loaded is joined by new objects, on threads of their own too
                signal.alarm(100)
                threads = [threading.Thread(target=work, args=(encoder, texts, expected)) for _ in range(3)]
                for thread in threads:
                    thread.start()
                vectors = HuggingFaceBgeEmbeddings(model_name=sys.argv[1], device="cpu", on_truncation="ignore")
                assert np.abs(np.array(vectors.embed_documents(texts)) - expected).max() < 1e-5
                for thread in threads:
                    thread.join()
                os._exit(in_child(encoder, texts, expected, unseen_fork))
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
            pid = unseen_fork()
            if pid == 0:  # it ends without having used the model
                signal.alarm(100)
                sys.exit(9)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
            work(encoder, texts, expected)
            """,
            "openvino",
        )

    def test_many_of_them_while_other_threads_compute_and_load(self, bge_small_en: Path) -> None:
        self._run(
            bge_small_en,
            f"""
            def compute():
                encoder.encode_documents(texts)

            def load():
                with BgeEncoder(sys.argv[1], device="cpu", engine="openvino", precision="bfloat16") as other:
                    other.encode(["fox"])

            running, codes = [], []
            with Busy(compute, compute, load):
                for number in range({_FORKS}):
                    pid = os.fork()
                    if pid == 0:
                        signal.alarm(100)
                        work(encoder, texts[:5], expected[:5])
                        os._exit(7)
                    running.append(pid)
                    if len(running) == 3 or number == {_FORKS} - 1:
                        codes += [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in running]
                        running.clear()
            assert codes == [7] * {_FORKS}, codes
            """,
            "openvino",
        )

    @pytest.mark.slow
    def test_a_pool_of_them_while_other_threads_compute(self, bge_small_en: Path) -> None:
        self._run(
            bge_small_en,
            f"""
            with Busy(lambda: encoder.encode_documents(texts)):
                with multiprocessing.get_context("fork").Pool(2, maxtasksperchild=2) as pool:
                    found = pool.map_async(encoder.encode_documents, [texts[:5]] * {_FORKS}, chunksize=1).get(100)
            assert max(np.abs(vectors - expected[:5]).max() for vectors in found) < 1e-5
            """,
            "openvino",
        )


class TestNativeCode:
    def test_a_fork_waits_until_nobody_else_is_inside(self) -> None:
        inside, entered, may_leave, order = forking._Inside(), threading.Event(), threading.Event(), []

        def work() -> None:
            with inside:
                entered.set()
                assert may_leave.wait(_LONG)
                order.append("left")

        def come_later() -> None:
            with inside:
                order.append("came")

        worker, later = threading.Thread(target=work), threading.Thread(target=come_later)
        worker.start()
        assert entered.wait(_LONG)
        threading.Timer(0.05, may_leave.set).start()
        with inside:  # who forks may be inside itself
            assert inside.close(_LONG)
        order.append("forked")
        later.start()
        time.sleep(0.05)
        inside.open()
        later.join(_LONG)
        worker.join(_LONG)
        assert order == ["left", "forked", "came"]

    def test_who_is_inside_can_go_further_in_while_a_fork_waits(self) -> None:
        inside, entered, may_go, done = forking._Inside(), threading.Event(), threading.Event(), threading.Event()

        def work() -> None:
            with inside:
                entered.set()
                assert may_go.wait(_LONG)
                with inside:
                    done.set()

        worker = threading.Thread(target=work)
        worker.start()
        assert entered.wait(_LONG)
        forks = threading.Thread(target=inside.close, args=(_LONG,))
        forks.start()
        while inside._closed_by is None:
            time.sleep(0.001)
        may_go.set()
        assert done.wait(_LONG)
        forks.join(_LONG)
        assert not forks.is_alive()
        worker.join(_LONG)

    def test_then_threads_of_native_code_get_time_to_go_to_sleep(self, monkeypatch: pytest.MonkeyPatch) -> None:
        states = [True, True, False]
        monkeypatch.setattr(forking, "_some_native_thread_runs", lambda: states.pop(0))
        inside = forking._Inside()
        with inside:
            pass
        assert inside.close(_LONG)
        assert states == []

    @pytest.mark.skipif(not forking._TASKS.exists(), reason="this system doesn't show the states of threads")
    def test_threads_of_native_code_are_told_from_those_of_python(self) -> None:
        spins = threading.Thread(target=lambda: sum(range(50_000_000)), daemon=True)
        spins.start()  # a thread of Python, which runs

        def some_run() -> bool:
            return all(forking._some_native_thread_runs() for _ in range(200))

        until = time.monotonic() + _LONG
        while some_run():  # others may still be on their way to sleep
            assert time.monotonic() < until

    def test_it_is_not_waited_for_ever(self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        monkeypatch.setattr(forking, "_LONGEST_WAIT_S", 0.05)
        inside, entered, may_leave = forking._Inside(), threading.Event(), threading.Event()
        monkeypatch.setattr(forking, "_inside", inside)

        def work() -> None:
            with forking.native_code():
                entered.set()
                assert may_leave.wait(_LONG)

        worker = threading.Thread(target=work)
        worker.start()
        assert entered.wait(_LONG)
        forking._before_fork()
        assert "a process is forked while OpenVINO has computed" in caplog.text
        inside.open()
        may_leave.set()
        worker.join(_LONG)

    def test_the_interpreter_ends_when_daemon_threads_have_left_it(self) -> None:
        script = """
import sys, threading, time
from bge_integrations.backend.guarantees.forks import native_code

entered = threading.Event()

def work():
    with native_code():
        entered.set()
        time.sleep(0.3)
        sys.stdout.write("left")
        sys.stdout.flush()
    with native_code():
        sys.stdout.write("came again")
        sys.stdout.flush()

threading.Thread(target=work, daemon=True).start()
entered.wait()
"""
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout) == (0, "left"), done.stderr


class TestStartsThatDoNotReturn:
    """Of the first engine; see `test_scheduling` for later ones."""

    def test_it_is_said(
        self, bge_small_en: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(forking, "LONGEST_START_S", 0.05)
        compile_model = ov.Core.compile_model

        def slow(*args: Any) -> Any:  # noqa: ANN401
            while "OpenVINO has been compiling the model for more than" not in caplog.text:
                time.sleep(0.001)
            return compile_model(*args)

        monkeypatch.setattr(ov.Core, "compile_model", slow)
        with BgeEncoder(bge_small_en, device="cpu", engine="openvino", threads=1) as encoder:
            assert encoder.encode_queries(["fox"]).shape == (1, 32)


def test_all_threads_wait_until_a_fork_was_dealt_with(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, may_end, order = threading.Event(), threading.Event(), []

    def act() -> None:
        begun.set()
        assert may_end.wait(_LONG)
        order.append("dealt with")

    monkeypatch.setattr(forking, "_actions", [act])
    monkeypatch.setattr(forking, "_process", -1)

    def come() -> None:
        forking.notice_fork()
        order.append("went on")

    first, second = threading.Thread(target=come), threading.Thread(target=come)
    first.start()
    assert begun.wait(_LONG)
    second.start()
    time.sleep(0.05)
    assert not order
    may_end.set()
    for thread in (first, second):
        thread.join(_LONG)
    assert order == ["dealt with", "went on", "went on"]
