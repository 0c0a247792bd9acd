"""Questions of a few words: what is looked for, or the name that it has."""

from __future__ import annotations

from benchmarks.questions.labelling import label

__all__ = ["IDENTIFIERS", "KEYWORDS"]

KEYWORDS = label(
    "keyword",
    {
        "quotient and remainder at once": "divmod",
        "running total of a sequence": "itertools.accumulate",
        "weighted random choice": "random random.choices",
        "bell curve random number": "random random.gauss random.normalvariate statistics.NormalDist.samples",
        "straight line fit": "statistics.linear_regression",
        "smallest common multiple": "math.lcm",
        "week number": "datetime.date.isocalendar",
        "days in a month": "calendar.monthrange",
        "unix timestamp to calendar date": (
            "datetime.date.fromtimestamp datetime.datetime.fromtimestamp datetime.datetime.utcfromtimestamp "
            "time.ctime time.gmtime time.localtime"
        ),
        "hostname to ip address": (
            "socket.getaddrinfo socket.gethostbyaddr socket.gethostbyname socket.gethostbyname_ex"
        ),
        "static file web server": "http.server http.server.SimpleHTTPRequestHandler",
        "fuzzy string similarity score": "difflib.SequenceMatcher difflib.SequenceMatcher.ratio",
        "title case": "str.title string.capwords",
        "guid generator": "uuid uuid.uuid1 uuid.uuid3 uuid.uuid4 uuid.uuid5",
        "log file rotation": (
            "logging.handlers.BaseRotatingHandler logging.handlers.RotatingFileHandler "
            "logging.handlers.TimedRotatingFileHandler"
        ),
        "current user name": "getpass getpass.getuser os.getlogin",
        "home directory": "os.path.expanduser pathlib.Path.expanduser pathlib.Path.home",
        "name of the operating system": (
            "os.uname os.uname_result.sysname platform.freedesktop_os_release platform.platform platform.system "
            "platform.uname sysconfig.get_platform"
        ),
        "country specific money format": "locale.currency locale.format_string locale.localeconv",
        "round robin over a list": "itertools.cycle",
        "code listing of a function": (
            "inspect.getsource inspect.getsourcelines pdb.Pdb.do_longlist pdb.Pdb.do_source"
        ),
    },
)

IDENTIFIERS = label(
    "identifier",
    {
        "functools lru_cache maxsize": "functools.lru_cache",
        "os.path.expanduser": "os.path.expanduser",
        "subprocess Popen communicate input": "subprocess.Popen.communicate",
        "collections.namedtuple": "collections.namedtuple",
        "itertools.islice start stop step": "itertools.islice",
        "asyncio.create_task": "asyncio.create_task",
        "dict setdefault": "dict.setdefault",
        "struct.calcsize": "struct.calcsize",
        "datetime.datetime.strptime": "datetime.datetime.strptime",
        "TimedRotatingFileHandler backupCount": "logging.handlers.TimedRotatingFileHandler",
        "math.nextafter": "math.nextafter",
        "shutil ignore_patterns": "shutil.ignore_patterns",
        "StringIO getvalue": "io.StringIO.getvalue",
        "heapq.heapreplace": "heapq.heapreplace",
        "json.JSONDecodeError lineno colno": "json.JSONDecodeError",
        "ast.NodeVisitor.generic_visit": "ast.NodeVisitor.generic_visit",
        "inspect.Signature.bind_partial": "inspect.Signature.bind_partial",
        "sys.setswitchinterval": "sys.setswitchinterval",
    },
)
