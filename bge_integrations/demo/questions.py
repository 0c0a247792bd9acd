"""Questions about the standard library, each with the names that answer it.

The labels were decided by reading the documentation, not by what a model finds. Where several entries of the corpus
truly answer a question, all of them count; a module counts where its passage names the right function or says that it
does what was asked.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["QUESTIONS", "Question"]


@dataclass(frozen=True)
class Question:
    """A question in natural language.

    Attributes:
        text: The question as a programmer would ask it.
        answers: Qualified names of the entries that answer it, any of which counts as a hit.
    """

    text: str
    answers: frozenset[str]


def _ask(text: str, answers: str) -> Question:
    return Question(text, frozenset(answers.split()))


_FILES = (
    _ask("how do I copy a whole directory tree?", "shutil.copytree"),
    _ask("delete a folder together with everything in it", "shutil.rmtree"),
    _ask("how much free space is left on the disk?", "os.statvfs shutil.disk_usage"),
    _ask("find where an executable is installed, like the unix command which", "shutil.which"),
    _ask("how can I tell whether two files have the same contents?", "filecmp filecmp.cmp"),
    _ask("how big is a file in bytes?", "os.path.getsize os.stat pathlib.Path.stat"),
    _ask("visit every file in all subfolders recursively", "os.fwalk os.walk pathlib.Path.rglob"),
    _ask("read a text file into one string in a single call", "pathlib.Path.read_text"),
    _ask("change the extension of a filename", "pathlib.PurePath.with_suffix"),
    _ask("scratch folder that disappears when I am done with it", "tempfile.TemporaryDirectory"),
    _ask(
        "turn a relative path into an absolute one",
        "os.path.abspath os.path.realpath pathlib.Path.absolute pathlib.Path.resolve",
    ),
    _ask("when was this file last changed?", "os.path.getmtime os.stat pathlib.Path.stat"),
    _ask("unpack all files from a zip archive", "shutil.unpack_archive zipfile.ZipFile.extractall"),
    _ask(
        "guess what kind of content a file has from its name",
        "mimetypes mimetypes.MimeTypes.guess_type mimetypes.guess_type",
    ),
    _ask("make a shortcut that points to another file", "os.symlink pathlib.Path.symlink_to"),
)

_TEXT = (
    _ask("remove the common indentation from a block of text", "textwrap.dedent"),
    _ask("break a long line into lines of at most 80 characters", "textwrap.TextWrapper textwrap.fill textwrap.wrap"),
    _ask("suggest the closest spelling for a mistyped word", "difflib.get_close_matches"),
    _ask(
        "show the changes between two versions of a text",
        "difflib difflib.Differ difflib.Differ.compare difflib.HtmlDiff difflib.context_diff difflib.ndiff "
        "difflib.unified_diff",
    ),
    _ask("replace every match of a pattern in a string", "re.Pattern.sub re.Pattern.subn re.sub re.subn"),
    _ask("cut a string at the commas into a list", "re.split str.rsplit str.split"),
    _ask("glue a list of strings together with a separator", "str.join"),
    _ask("get rid of leading and trailing spaces", "str.strip"),
    _ask("compare strings regardless of upper and lower case", "str.casefold"),
    _ask("split a command line the way the shell does", "shlex shlex.split"),
    _ask("make user input safe to show on a web page", "html.escape xml.sax.saxutils.escape"),
    _ask("what is the official name of this unicode character?", "unicodedata.name"),
    _ask("pad a number with zeros on the left", "str.zfill"),
)

_NUMBERS = (
    _ask("largest number that divides both integers", "math.gcd"),
    _ask("number of ways to choose k out of n", "math.comb"),
    _ask(
        "middle value of a sorted list of measurements",
        "statistics.median statistics.median_high statistics.median_low",
    ),
    _ask(
        "how spread out are my samples around their average?",
        "statistics statistics.pstdev statistics.pvariance statistics.stdev statistics.variance",
    ),
    _ask("compare two floats while allowing for rounding error", "cmath.isclose math.isclose"),
    _ask("add up floats without losing digits", "math.fsum"),
    _ask("straight-line distance between two points", "math.dist"),
    _ask("mix up the order of a deck of cards", "random.shuffle"),
    _ask("pick several different winners from a list of participants", "random.sample"),
    _ask(
        "generate an unguessable token for a password reset link",
        "secrets secrets.token_bytes secrets.token_hex secrets.token_urlsafe",
    ),
    _ask("round money amounts exactly to two decimals", "decimal.Decimal.quantize"),
    _ask("quotient and remainder at once", "divmod"),
)

_DATA = (
    _ask("find the most frequent words in a list", "collections.Counter collections.Counter.most_common"),
    _ask("dictionary that creates missing values on first access", "collections.defaultdict"),
    _ask("queue with fast appends and pops on both ends", "collections.deque"),
    _ask("the three biggest items of a long list without sorting all of it", "heapq.nlargest"),
    _ask("put an element into a sorted list at the right place", "bisect.insort_left bisect.insort_right"),
    _ask("loop over a list with the position of each element", "enumerate"),
    _ask("all possible orderings of a list", "itertools.permutations"),
    _ask("treat several lists as one long sequence", "itertools.chain itertools.chain.from_iterable"),
    _ask("nested loops over several lists as one iterator", "itertools.product"),
    _ask("running total of a sequence", "itertools.accumulate"),
    _ask("duplicate an object including everything nested in it", "copy copy.deepcopy"),
    _ask(
        "remember the results of expensive calls so they are not computed again",
        "functools.cache functools.lru_cache",
    ),
    _ask("fix some of the arguments of a function in advance", "functools.partial functools.partialmethod"),
    _ask("turn an object into a JSON string", "json.JSONEncoder.encode json.dumps"),
    _ask("read rows from a spreadsheet saved as comma separated values", "csv csv.reader"),
    _ask(
        "save python objects to disk and load them later",
        "pickle pickle.Pickler pickle.Pickler.dump pickle.dump shelve shelve.open",
    ),
    _ask("change a data object into a dictionary of its fields", "dataclasses.asdict"),
)

_SYSTEM = (
    _ask("what is the id of the running process?", "os.getpid"),
    _ask("how many processors does this machine have?", "os.cpu_count"),
    _ask(
        "run an external command and capture what it prints",
        "subprocess subprocess.check_output subprocess.getoutput subprocess.getstatusoutput subprocess.run",
    ),
    _ask("ask for a password without showing it on the screen", "getpass getpass.getpass getpass.unix_getpass"),
    _ask("call a function just before the program exits", "atexit.register"),
    _ask("wait for a few seconds before going on", "asyncio.sleep time.sleep"),
    _ask(
        "measure how fast a small piece of code runs",
        "timeit timeit.Timer timeit.Timer.autorange timeit.Timer.repeat timeit.Timer.timeit timeit.repeat "
        "timeit.timeit",
    ),
    _ask("how many bytes does an object take in memory?", "sys.getsizeof"),
    _ask("look up an environment variable with a default", "os.getenv"),
    _ask("width and height of the terminal window", "os.get_terminal_size shutil.get_terminal_size"),
    _ask(
        "parse options given on the command line",
        "argparse argparse.ArgumentParser argparse.ArgumentParser.add_argument getopt getopt.getopt "
        "getopt.gnu_getopt optparse optparse.OptionParser optparse.OptionParser.parse_args",
    ),
    _ask("ignore a certain exception instead of writing try and except", "contextlib.suppress"),
    _ask("write a context manager as a simple generator", "contextlib.contextmanager"),
    _ask(
        "get the current stack trace as a string for my log",
        "traceback.format_exc traceback.format_exception traceback.format_stack",
    ),
    _ask(
        "which arguments does a function accept?",
        "inspect.Signature inspect.getfullargspec inspect.signature",
    ),
    _ask("import a module whose name is only known at run time", "importlib.import_module"),
)

_TIME_AND_NETWORK = (
    _ask("does this year have 366 days?", "calendar.isleap"),
    _ask(
        "make a date object from a string in ISO format",
        "datetime.date.fromisoformat datetime.datetime.fromisoformat",
    ),
    _ask("print a date in my own format", "datetime.date.strftime datetime.time.strftime time.strftime"),
    _ask("which day of the week was it?", "calendar.weekday datetime.date.isoweekday datetime.date.weekday"),
    _ask("download a web page", "urllib.request urllib.request.urlopen urllib.request.urlretrieve"),
    _ask(
        "escape special characters so they can be put in a URL",
        "urllib.parse.quote urllib.parse.quote_from_bytes urllib.parse.quote_plus urllib.parse.urlencode",
    ),
    _ask("resolve a relative link against the address of the page", "urllib.parse.urljoin"),
    _ask(
        "show a website in the user's browser",
        "webbrowser webbrowser.open webbrowser.open_new webbrowser.open_new_tab",
    ),
    _ask("name of the computer I am on", "os.uname platform.node platform.uname socket.getfqdn socket.gethostname"),
    _ask("send an e-mail", "smtplib.SMTP smtplib.SMTP.send_message smtplib.SMTP.sendmail"),
    _ask("is it allowed to crawl this page?", "urllib.robotparser.RobotFileParser.can_fetch"),
    _ask(
        "encode binary data as plain ASCII text",
        "base64 base64.a85encode base64.b16encode base64.b64encode base64.b85encode base64.encodebytes "
        "base64.standard_b64encode base64.urlsafe_b64encode binascii.b2a_base64 binascii.b2a_hex "
        "binascii.b2a_uu binascii.hexlify",
    ),
)

_CONCURRENCY_AND_CLASSES = (
    _ask("run several coroutines at the same time and collect their results", "asyncio.gather"),
    _ask("give up on an awaitable if it takes too long", "asyncio.wait_for"),
    _ask("call a blocking function from async code without freezing the event loop", "asyncio.to_thread"),
    _ask("process results in the order in which they finish", "asyncio.as_completed concurrent.futures.as_completed"),
    _ask("replace an object by a fake during a test", "unittest.mock.patch"),
    _ask("check that a piece of code raises an error", "unittest.TestCase.assertRaises"),
    _ask("force subclasses to implement a method", "abc.abstractmethod"),
    _ask("does an object have an attribute of this name?", "hasattr"),
    _ask(
        "keep references to objects without preventing them from being freed",
        "weakref weakref.WeakKeyDictionary weakref.WeakMethod weakref.WeakValueDictionary",
    ),
    _ask("evaluate a string holding a python literal without the dangers of eval", "ast.literal_eval"),
)

QUESTIONS: tuple[Question, ...] = (
    *_FILES,
    *_TEXT,
    *_NUMBERS,
    *_DATA,
    *_SYSTEM,
    *_TIME_AND_NETWORK,
    *_CONCURRENCY_AND_CLASSES,
)
"""All labelled questions, by subject."""
