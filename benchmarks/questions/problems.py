"""Questions that tell what goes wrong, and those that want one thing and not its neighbour."""

from __future__ import annotations

from benchmarks.questions.labelling import label

__all__ = ["CONTRASTS", "SYMPTOMS"]

SYMPTOMS = label(
    "symptom",
    {
        "my function that calls itself dies after about a thousand nested calls": (
            "RecursionError sys.getrecursionlimit sys.setrecursionlimit"
        ),
        "changing the duplicate also changes the lists inside the original": "copy copy.deepcopy",
        "my info messages never show up in the log": (
            "logging.Handler.setLevel logging.Logger.setLevel logging.basicConfig"
        ),
        "two accented letters look the same on the screen but compare as unequal": "unicodedata.normalize",
        "the second loop over my generator yields nothing": "itertools.tee",
        "after decorating a function its name and docstring are gone": "functools.update_wrapper functools.wraps",
        "my nested dictionary comes out as one endless line": "pprint pprint.pformat pprint.pp pprint.pprint",
        "the simulation gives another result on every run, so I can't repeat it": "random.seed",
        "inserting at the front gets slower the longer the list is": "collections.deque collections.deque.appendleft",
        "my client waits forever when the server does not respond": "socket.setdefaulttimeout",
        "a thread died of an exception and nobody noticed": "threading.excepthook",
        "the thread hangs when it asks again for the lock that it already holds": "threading.RLock",
        "when the surrounding task is cancelled, the write to the database inside is cut off": "asyncio.shield",
        "the program ends with a traceback when somebody presses Ctrl-C": (
            "KeyboardInterrupt signal.default_int_handler signal.signal"
        ),
        "0.1 + 0.2 is not equal to 0.3": "cmath.isclose decimal.Decimal fractions fractions.Fraction math.isclose",
        "the child process does not stop by itself and has to be ended by force": (
            "asyncio.SubprocessTransport.kill asyncio.SubprocessTransport.terminate "
            "multiprocessing.process.BaseProcess.kill multiprocessing.process.BaseProcess.terminate "
            "os.kill os.killpg subprocess.Popen.kill subprocess.Popen.terminate"
        ),
        "the page shows &amp; instead of an ampersand": "html.unescape xml.sax.saxutils.unescape",
        "deprecation messages clutter my terminal": (
            "warnings.catch_warnings warnings.filterwarnings warnings.simplefilter"
        ),
        "the program pauses now and then to clean up unused objects": "gc.disable gc.freeze gc.set_threshold",
        "asking a dictionary for a key that is not there fails": (
            "KeyError collections.defaultdict dict.get dict.setdefault"
        ),
        "the program needs more and more memory, and I don't know which line takes it": (
            "tracemalloc.Snapshot tracemalloc.Snapshot.compare_to tracemalloc.Snapshot.statistics "
            "tracemalloc.get_object_traceback tracemalloc.take_snapshot"
        ),
        "my script is slow, and I don't know which function is to blame": (
            "cProfile cProfile.Profile profile profile.run profile.runctx"
        ),
    },
)

CONTRASTS = label(
    "contrast",
    {
        "the three biggest items of a long list without sorting all of it": "heapq.nlargest",
        "ignore a certain exception instead of writing try and except": "contextlib.suppress",
        "ask for a password without showing it on the screen": "getpass getpass.getpass getpass.unix_getpass",
        "add up floats without losing digits": "math.fsum",
        "call a blocking function from async code without freezing the event loop": "asyncio.to_thread",
        "keep references to objects without preventing them from being freed": (
            "weakref weakref.WeakKeyDictionary weakref.WeakMethod weakref.WeakValueDictionary"
        ),
        "evaluate a string holding a python literal without the dangers of eval": "ast.literal_eval",
        "a clock that does not jump when somebody sets the system time": "time.monotonic time.monotonic_ns",
        "the time that the processor worked, not the time that went by": (
            "os.times time.process_time time.process_time_ns time.thread_time time.thread_time_ns"
        ),
        "take an element out of a set, but no error if it is not in there": (
            "collections.abc.MutableSet.discard set.discard"
        ),
        "several processes instead of threads for a heavy computation": (
            "concurrent.futures concurrent.futures.ProcessPoolExecutor.map multiprocessing.pool.Pool "
            "multiprocessing.process.BaseProcess"
        ),
        "randomness fit for cryptography instead of the ordinary generator": (
            "os.urandom random.SystemRandom secrets secrets.randbelow secrets.token_bytes"
        ),
        "a set that can be the key of a dictionary, since nobody can change it": "frozenset",
        "pair up two lists without dropping the rest of the longer one": "itertools.zip_longest",
        "cut a string at the last separator, not at the first": "str.rpartition str.rsplit",
        "spread of the entire population rather than of a sample": "statistics.pstdev statistics.pvariance",
        "put a list in order, but leave the list itself as it is": "sorted",
        "the pattern has to cover the entire string, not only its beginning": "re.Pattern.fullmatch re.fullmatch",
        "keep those elements for which the test is not true": "itertools.filterfalse",
        "a file's copy with the same timestamps, not only the same contents": "shutil.copy2 shutil.copystat",
        "root of a number as a whole number, without going through floats": "math.isqrt",
        "next element, but a default instead of an exception at the end": "next",
        "look up a name in several dictionaries without merging them": "collections.ChainMap",
        "a second name for a file that is not a symbolic link": "os.link pathlib.Path.hardlink_to",
        "ways to choose k out of n when their order does matter": "math.perm",
        "delete a folder only if there is nothing in it": "os.removedirs os.rmdir pathlib.Path.rmdir",
    },
)
