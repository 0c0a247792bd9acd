"""Questions in the words of other programming languages and systems, and in other languages than English."""

from __future__ import annotations

from benchmarks.questions.labelling import label

__all__ = ["ANALOGIES", "FOREIGN"]

ANALOGIES = label(
    "analogy",
    {
        "find where an executable is installed, like the unix command which": "shutil.which",
        "split a command line the way the shell does": "shlex shlex.split",
        "expand *.txt as bash does": "glob glob.glob glob.iglob pathlib.Path.glob",
        "mkdir -p": "os.makedirs pathlib.Path.mkdir",
        "chmod +x for a script": "os.chmod os.fchmod pathlib.Path.chmod",
        "tar -xzf": "shutil.unpack_archive tarfile tarfile.TarFile.extractall",
        "diff -r for two folders": "filecmp filecmp.cmpfiles filecmp.dircmp",
        "the first lines only, as with head -n, but of any iterator": "itertools.islice",
        "fill in $name as in a shell script": "os.path.expandvars string.Template",
        "stepping through a program as in gdb": (
            "bdb.Bdb bdb.Bdb.set_next bdb.Bdb.set_step bdb.Bdb.set_trace breakpoint pdb pdb.Pdb.do_debug "
            "pdb.Pdb.do_next pdb.Pdb.do_step"
        ),
        "ini files as on Windows": (
            "configparser configparser.ConfigParser configparser.RawConfigParser configparser.RawConfigParser.read "
            "configparser.RawConfigParser.read_file"
        ),
        "run each job after those that it depends on, as make does": (
            "graphlib.TopologicalSorter graphlib.TopologicalSorter.get_ready graphlib.TopologicalSorter.static_order"
        ),
        "Java's LinkedHashMap, a hash map that keeps its entries in the order they came": "collections.OrderedDict",
        "Java's CyclicBarrier": "threading.Barrier",
        "an interface as in Java, whose methods a class has to implement": (
            "abc abc.ABC abc.ABCMeta abc.abstractmethod typing.Protocol"
        ),
        "foldl of Haskell": "functools.reduce",
        "setTimeout of JavaScript": "asyncio.BaseEventLoop.call_later sched.scheduler.enter threading.Timer",
        "a promise as in JavaScript": "asyncio.Future concurrent.futures.Future",
        "a channel between goroutines": "asyncio.Queue queue queue.Queue",
        "GROUP BY of SQL for neighbouring rows": "itertools.groupby",
        "lower_bound of C++": "bisect.bisect_left",
        "std::priority_queue": (
            "asyncio.PriorityQueue heapq heapq.heapify heapq.heappop heapq.heappush queue.PriorityQueue"
        ),
        "stringstream of C++": "io.StringIO",
        "overloads as in C++: another implementation for each type of the argument": (
            "functools.singledispatch functools.singledispatchmethod"
        ),
        "each_cons(2) of Ruby": "itertools.pairwise",
        "a record type as in C#": (
            "collections.namedtuple dataclasses.dataclass dataclasses.make_dataclass typing.NamedTuple"
        ),
    },
)

FOREIGN = label(
    "foreign",
    {
        "Wie prüfe ich, ob eine Datei existiert?": (
            "os.path.exists os.path.isfile os.path.lexists pathlib.Path.exists pathlib.Path.is_file"
        ),
        "einen Text in Großbuchstaben umwandeln": "str.upper",
        "Comment supprimer un fichier ?": "os.remove os.unlink pathlib.Path.unlink",
        "trier une liste par ordre décroissant": "list.sort sorted",
        "¿Cómo obtengo la fecha de hoy?": "datetime.date.today datetime.datetime.now",
        "dividir un texto en líneas": "str.splitlines",
        "如何获取当前工作目录？": "os.getcwd os.getcwdb pathlib.Path.cwd",
        "把列表中的元素随机打乱顺序": "random.shuffle",
    },
)
