"""Questions for a task or a fact, in a programmer's own words."""

from __future__ import annotations

from benchmarks.questions.labelling import label

__all__ = ["HOW_TO"]

_FILES = {
    "how do I copy a whole directory tree?": "shutil.copytree",
    "delete a folder together with everything in it": "shutil.rmtree",
    "how much free space is left on the disk?": "os.statvfs shutil.disk_usage",
    "how can I tell whether two files have the same contents?": "filecmp filecmp.cmp",
    "how big is a file in bytes?": "os.path.getsize os.stat pathlib.Path.stat",
    "visit every file in all subfolders recursively": "os.fwalk os.walk pathlib.Path.rglob",
    "read a text file into one string in a single call": "pathlib.Path.read_text",
    "change the extension of a filename": "pathlib.PurePath.with_suffix",
    "scratch folder that disappears when I am done with it": "tempfile.TemporaryDirectory",
    "turn a relative path into an absolute one": (
        "os.path.abspath os.path.realpath pathlib.Path.absolute pathlib.Path.resolve"
    ),
    "when was this file last changed?": "os.path.getmtime os.stat pathlib.Path.stat",
    "unpack all files from a zip archive": "shutil.unpack_archive zipfile.ZipFile.extractall",
    "guess what kind of content a file has from its name": (
        "mimetypes mimetypes.MimeTypes.guess_type mimetypes.guess_type"
    ),
    "make a shortcut that points to another file": "os.symlink pathlib.Path.symlink_to",
    "the last part of a path, without the folders before it": "os.path.basename os.path.split pathlib.PurePath.name",
    "make sure that what was written has really reached the disk": "os.fdatasync os.fsync os.sync",
}

_TEXT = {
    "remove the common indentation from a block of text": "textwrap.dedent",
    "break a long line into lines of at most 80 characters": "textwrap.TextWrapper textwrap.fill textwrap.wrap",
    "suggest the closest spelling for a mistyped word": "difflib.get_close_matches",
    "show the changes between two versions of a text": (
        "difflib difflib.Differ difflib.Differ.compare difflib.HtmlDiff difflib.context_diff difflib.ndiff "
        "difflib.unified_diff"
    ),
    "replace every match of a pattern in a string": "re.Pattern.sub re.Pattern.subn re.sub re.subn",
    "cut a string at the commas into a list": "re.split str.rsplit str.split",
    "glue a list of strings together with a separator": "str.join",
    "get rid of leading and trailing spaces": "str.strip",
    "compare strings regardless of upper and lower case": "str.casefold",
    "make user input safe to show on a web page": "html.escape xml.sax.saxutils.escape",
    "what is the official name of this unicode character?": "unicodedata.name",
    "pad a number with zeros on the left": "str.zfill",
    "take literally what the user typed, inside a regular expression": "re.escape",
    "cut a text short and put dots at its end": "textwrap.shorten",
}

_NUMBERS = {
    "largest number that divides both integers": "math.gcd",
    "number of ways to choose k out of n": "math.comb",
    "middle value of a sorted list of measurements": "statistics.median statistics.median_high statistics.median_low",
    "how spread out are my samples around their average?": (
        "statistics statistics.pstdev statistics.pvariance statistics.stdev statistics.variance"
    ),
    "compare two floats while allowing for rounding error": "cmath.isclose math.isclose",
    "straight-line distance between two points": "math.dist",
    "mix up the order of a deck of cards": "random.shuffle",
    "pick several different winners from a list of participants": "random.sample",
    "generate an unguessable token for a password reset link": (
        "secrets secrets.token_bytes secrets.token_hex secrets.token_urlsafe"
    ),
    "round money amounts exactly to two decimals": "decimal.Decimal.quantize",
    "throw a die": "random random.randint random.randrange",
}

_DATA = {
    "find the most frequent words in a list": "collections.Counter collections.Counter.most_common",
    "dictionary that creates missing values on first access": "collections.defaultdict",
    "queue with fast appends and pops on both ends": "collections.deque",
    "put an element into a sorted list at the right place": "bisect.insort_left bisect.insort_right",
    "loop over a list with the position of each element": "enumerate",
    "all possible orderings of a list": "itertools.permutations",
    "treat several lists as one long sequence": "itertools.chain itertools.chain.from_iterable",
    "nested loops over several lists as one iterator": "itertools.product",
    "duplicate an object including everything nested in it": "copy copy.deepcopy",
    "remember the results of expensive calls so they are not computed again": "functools.cache functools.lru_cache",
    "fix some of the arguments of a function in advance": "functools.partial functools.partialmethod",
    "turn an object into a JSON string": "json.JSONEncoder.encode json.dumps",
    "read rows from a spreadsheet saved as comma separated values": "csv csv.reader",
    "save python objects to disk and load them later": (
        "pickle pickle.Pickler pickle.Pickler.dump pickle.dump shelve shelve.open"
    ),
    "change a data object into a dictionary of its fields": "dataclasses.asdict",
    "put records in order by one of their fields": "list.sort operator.attrgetter operator.itemgetter sorted",
    "what is in one of two collections but not in both?": ("set.symmetric_difference set.symmetric_difference_update"),
}

_SYSTEM = {
    "what is the id of the running process?": "os.getpid",
    "how many processors does this machine have?": "os.cpu_count",
    "run an external command and capture what it prints": (
        "subprocess subprocess.check_output subprocess.getoutput subprocess.getstatusoutput subprocess.run"
    ),
    "call a function just before the program exits": "atexit.register",
    "wait for a few seconds before going on": "asyncio.sleep time.sleep",
    "measure how fast a small piece of code runs": (
        "timeit timeit.Timer timeit.Timer.autorange timeit.Timer.repeat timeit.Timer.timeit timeit.repeat timeit.timeit"
    ),
    "how many bytes does an object take in memory?": "sys.getsizeof",
    "look up an environment variable with a default": "os.getenv",
    "width and height of the terminal window": "os.get_terminal_size shutil.get_terminal_size",
    "parse options given on the command line": (
        "argparse argparse.ArgumentParser argparse.ArgumentParser.add_argument getopt getopt.getopt "
        "getopt.gnu_getopt optparse optparse.OptionParser optparse.OptionParser.parse_args"
    ),
    "write a context manager as a simple generator": "contextlib.contextmanager",
    "get the current stack trace as a string for my log": (
        "traceback.format_exc traceback.format_exception traceback.format_stack"
    ),
    "which arguments does a function accept?": "inspect.Signature inspect.getfullargspec inspect.signature",
    "import a module whose name is only known at run time": "importlib.import_module",
    "give a process less priority": "os.nice os.setpriority",
    "keep what a function prints away from the screen": "contextlib.redirect_stdout",
}

_TIME_AND_NETWORK = {
    "does this year have 366 days?": "calendar.isleap",
    "make a date object from a string in ISO format": "datetime.date.fromisoformat datetime.datetime.fromisoformat",
    "print a date in my own format": "datetime.date.strftime datetime.time.strftime time.strftime",
    "which day of the week was it?": "calendar.weekday datetime.date.isoweekday datetime.date.weekday",
    "download a web page": "urllib.request urllib.request.urlopen urllib.request.urlretrieve",
    "escape special characters so they can be put in a URL": (
        "urllib.parse.quote urllib.parse.quote_from_bytes urllib.parse.quote_plus urllib.parse.urlencode"
    ),
    "resolve a relative link against the address of the page": "urllib.parse.urljoin",
    "show a website in the user's browser": "webbrowser webbrowser.open webbrowser.open_new webbrowser.open_new_tab",
    "name of the computer I am on": "os.uname platform.node platform.uname socket.getfqdn socket.gethostname",
    "send an e-mail": "smtplib.SMTP smtplib.SMTP.send_message smtplib.SMTP.sendmail",
    "is it allowed to crawl this page?": "urllib.robotparser.RobotFileParser.can_fetch",
    "the parameters after the question mark of a link": "urllib.parse.parse_qs urllib.parse.parse_qsl",
    "encode binary data as plain ASCII text": (
        "base64 base64.a85encode base64.b16encode base64.b64encode base64.b85encode base64.encodebytes "
        "base64.standard_b64encode base64.urlsafe_b64encode binascii.b2a_base64 binascii.b2a_hex "
        "binascii.b2a_uu binascii.hexlify"
    ),
}

_CONCURRENCY_AND_CLASSES = {
    "run several coroutines at the same time and collect their results": "asyncio.gather",
    "give up on an awaitable if it takes too long": "asyncio.wait_for",
    "process results in the order in which they finish": "asyncio.as_completed concurrent.futures.as_completed",
    "replace an object by a fake during a test": "unittest.mock.patch",
    "check that a piece of code raises an error": "unittest.TestCase.assertRaises",
    "force subclasses to implement a method": "abc.abstractmethod",
    "does an object have an attribute of this name?": "hasattr",
    "derive all comparisons of my class from a single one": "functools.total_ordering",
}

HOW_TO = label("how-to", _FILES | _TEXT | _NUMBERS | _DATA | _SYSTEM | _TIME_AND_NETWORK | _CONCURRENCY_AND_CLASSES)
