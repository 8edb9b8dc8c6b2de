"""Compiles the C that Cython generates for platforms other than this one, with zig's C compiler.

    python .ci/cross.py DIRECTORY PYTHON...

Needs Cython, setuptools and ziglang; the C and the objects go to DIRECTORY. Each PYTHON's headers are used for the
POSIX platforms, and, with the Windows configuration from the source of the same release, for Windows. A free-threaded
one stands for the standard build of its version, too, on Windows. Some warnings are errors: see `WARNINGS`.

The compiler of Windows wheels, MSVC, does not run here. So the C that is written by hand in the Cython sources is also
searched for what it refuses (`REFUSED`), as far as it is not guarded by a preprocessor condition.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

SOURCES = Path("src/synthex_fast")
TARGETS = ("x86_64-windows-gnu", "aarch64-macos", "aarch64-linux-gnu", "x86_64-linux-musl")

WARNINGS = [
    "-Werror=implicit-function-declaration",
    "-Werror=implicit-int",
    "-Werror=incompatible-pointer-types",
    "-Werror=incompatible-function-pointer-types",
    "-Werror=int-conversion",
    "-Werror=pointer-to-int-cast",
    "-Werror=int-to-pointer-cast",
    "-Werror=shorten-64-to-32",
    "-Werror=constant-conversion",
    "-Werror=shift-count-overflow",
    "-Werror=format",
    "-Werror=return-type",
    "-Werror=vla",
    # What MSVC has not, where a header of Cython's or CPython's does not hide it from this compiler.
    "-Werror=pointer-arith",
    "-Werror=gnu-case-range",
    "-Werror=gnu-conditional-omitted-operand",
    "-Werror=gnu-empty-struct",
    "-Werror=zero-length-array",
    "-Werror=gnu-binary-literal",
    # Also of use here, but Cython's own code is full of it: unused functions, unreachable code.
    "-Wno-unused-function",
    "-Wno-unreachable-code",
]

# By pattern: why MSVC refuses it, or what it means by it.
REFUSED = {
    r"\(\{": "a statement expression",
    r"__attribute__": "GCC's attributes",
    r"__builtin_\w+": "a builtin of GCC",
    r"__(?:sync|atomic)_\w+": "an atomic builtin of GCC",
    r"__thread\b|_Thread_local\b": "thread-local storage that only newer releases know: SYNTHEX_THREAD_LOCAL",
    r"\b_Atomic\b|stdatomic\.h": "C11 atomics",
    r"__extension__|\b__?typeof(?:__)?\b|\btypeof\b": "an extension of GCC",
    r"\b__?asm(?:__)?\b": "inline assembly",
    r"__int128": "128-bit integers",
    r"\b0[bB][01]+": "a binary literal, which is C23",
    r"\bcase\s+\w+\s*\.\.\.": "a range in case",
    r"\?\s*:": "a conditional without its middle",
    r"=\s*\{\s*\}": "an empty initialiser, which is C23",
    r"\b(?:char|int|double|\w+_t|\*)\s*\w+\[0\];": "an array of no length",
    r"struct\s*\w*\s*\{\s*\}": "an empty struct",
    r"#\s*include\s*<(?:unistd|pthread|sched|strings|dlfcn|poll|dirent|malloc|alloca|sys/\w+)\.h>": "a POSIX header",
    r"\bssize_t\b": "a POSIX type: Py_ssize_t",
    r"\b(?:clock_gettime|pthread_\w+|getpid|sched_yield|strcasecmp|usleep)\s*\(": "a POSIX function",
    r"(?<!long )(?<!unsigned )\blong\b(?! long)(?! double)": "32 bits long on Windows",
    r"%l[du]": "a format for long, which has 32 bits on Windows",
}
# In Cython code only this is of interest: its C is Cython's.
LONG = re.compile(
    r"^[ \t]*(?:cdef|ctypedef|cpdef)\b[^#\n]*(?<!long )(?<!unsigned )\blong\b(?! long)|<long>", re.M
)


def matching(text, line):
    """Whether a preprocessor condition is true, false or unknown (None) if MSVC compiles for Windows."""
    directive, _, condition = line.strip().lstrip("#").strip().partition(" ")
    known = {"_WIN32": True, "_MSC_VER": True, "__GNUC__": False, "__clang__": False, "__APPLE__": False}
    known |= {"__linux__": False}
    if directive in ("ifdef", "ifndef"):
        value = known.get(condition.strip())
        return value if value is None or directive == "ifdef" else not value
    simple = re.fullmatch(r"(!?)\s*defined\s*\(?\s*(\w+)\s*\)?", condition.strip())
    if simple is None or simple[2] not in known:
        return None
    return known[simple[2]] != bool(simple[1])


def seen_by_msvc(text):
    """The lines of C, with those blanked that MSVC on Windows does not compile."""
    lines = []
    # For each open condition: whether this branch is compiled, and whether one before was certainly taken.
    stack = []
    for line in text.splitlines():
        directive = re.match(r"\s*#\s*(if|ifdef|ifndef|elif|else|endif)\b", line)
        if directive:
            word = directive[1]
            if word.startswith("if"):
                value = matching(text, line)
                stack.append([value is not False, value is True])
            elif word == "endif":
                stack.pop()
            else:
                value = True if word == "else" else matching(text, line)
                taken = stack[-1][1]
                stack[-1] = [not taken and value is not False, taken or value is True]
            lines.append("")
        else:
            lines.append(line if all(branch for branch, _ in stack) else "")
    return "\n".join(lines)


def without_comments(text):
    return re.sub(r"/\*.*?\*/|//[^\n]*", lambda found: re.sub(r"[^\n]", " ", found[0]), text, flags=re.S)


def refusals(path):
    """What MSVC refuses in the C of one Cython source, as ``file:line: what``."""
    source = path.read_text()
    found = []
    for block in re.finditer(r'cdef extern from [^\n]*:\n\s*"""(.*?)"""', source, re.S):
        first = source.count("\n", 0, block.start(1)) + 1
        text = seen_by_msvc(without_comments(block[1]))
        for pattern, what in REFUSED.items():
            for hit in re.finditer(pattern, text):
                line = first + text.count("\n", 0, hit.start())
                found.append(f"{path}:{line}: {hit[0].strip()}: {what}")
    for hit in LONG.finditer(source):
        line = source.count("\n", 0, hit.start()) + hit[0].count("\n") + 1
        found.append(f"{path}:{line}: long has 32 bits on Windows")
    return found


class Headers(NamedTuple):
    """Where one configuration's headers are: ``folder`` holds its pyconfig.h, ``include`` the rest."""

    name: str
    folder: Path
    include: Path
    windows: bool


DESCRIBE = """
import json, platform, sys, sysconfig
print(json.dumps({
    "version": platform.python_version(),
    "include": sysconfig.get_path("include"),
    "pyconfig": sysconfig.get_config_h_filename(),
    "free": bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
}))
"""

# What aarch64-macos has otherwise than Linux on x86-64, as far as CPython's headers look at it.
MACOS = {
    "SIZEOF_LONG_DOUBLE": "8",
    "SIZEOF_FPOS_T": "8",
    "SIZEOF_PTHREAD_KEY_T": "8",
    "PTHREAD_KEY_T_IS_COMPATIBLE_WITH_INT": None,
    "HAVE_LINUX_RANDOM_H": None,
    "HAVE_ENDIAN_H": None,
}


def windows_configuration(version):
    """The path of the PC/pyconfig.h of that release; a text that says why there is none."""
    minor = ".".join(version.split(".")[:2])
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "synthex-fast"
    kept = cache / f"pyconfig-windows-{version}.h"
    if kept.exists():
        return kept
    sources = Path("/etc/apt/sources.list.d/debian.sources")
    archive = re.search(r"^URIs:\s*(\S+)", sources.read_text(), re.M) if sources.exists() else None
    if archive is None:
        return "no Debian archive, which has CPython's source, is configured here"
    # Debian spells a release candidate with a tilde.
    debian = re.sub(r"(?<=\d)(?=rc|a|b)", "~", version)
    name = f"pool/main/p/python{minor}/python{minor}_{debian}.orig.tar.xz"
    tarball = cache / "source.tar.xz"
    cache.mkdir(parents=True, exist_ok=True)
    try:
        with (
            urllib.request.urlopen(f"{archive[1]}/{name}", timeout=300) as answer,
            tarball.open("wb") as file,
        ):
            shutil.copyfileobj(answer, file)
        with tarfile.open(tarball) as source:
            member = next(m for m in source if m.name.endswith(("/PC/pyconfig.h", "/PC/pyconfig.h.in")))
            kept.write_bytes(source.extractfile(member).read())
    except OSError as error:
        return f"the source of CPython {version} can't be had: {error}"
    except StopIteration:
        return f"the source of CPython {version} has no Windows configuration"
    finally:
        tarball.unlink(missing_ok=True)
    return kept


def defined(text, changes):
    """The text of a pyconfig.h with other values for some names; None undefines one."""
    for name, value in changes.items():
        text = re.sub(rf"^\s*#\s*define\s+{name}\b.*$", "", text, flags=re.M)
        if value is not None:
            text += f"\n#define {name} {value}\n"
    return text


def configurations(python, work):
    """The `Headers` by target for each configuration that this interpreter's headers allow, and what is missing."""
    found = json.loads(subprocess.check_output([python, "-c", DESCRIBE], text=True))
    include, version = Path(found["include"]), found["version"]
    if not (include / "Python.h").exists():
        return [], [f"CPython {version} has no headers here"]
    posix = Path(found["pyconfig"]).read_text()
    windows = windows_configuration(version)
    made, missing = [], []
    if isinstance(windows, str):
        missing.append(f"Windows with {version} ({windows})")
    for free in (False, True) if found["free"] else (False,):
        changes = {"Py_GIL_DISABLED": "1" if free else None}
        for target in TARGETS:
            if "windows" in target and isinstance(windows, str):
                continue
            # Between the oldest release and the free-threaded build, only Windows' own code is new.
            if found["free"] and not free and "windows" not in target:
                continue
            text = windows.read_text() if "windows" in target else posix
            text = defined(text, changes | (MACOS if "macos" in target else {}))
            folder = work / "headers" / f"{version}{'t' if free else ''}-{target}"
            folder.mkdir(parents=True)
            # The rest by links: pyconfig.h is looked for beside Python.h first.
            for path in include.iterdir():
                if path.name != "pyconfig.h":
                    (folder / path.name).symlink_to(path)
            (folder / "pyconfig.h").write_text(text)
            made.append((f"{version}{'t' if free else ''}", target, folder))
    return made, missing


def generate(work):
    """The C of every module, by Cython with the directives of setup.py."""
    copy = work / "sources"
    shutil.copytree(
        ".",
        copy,
        ignore=shutil.ignore_patterns(".*", "build", "*.so", "__pycache__", "tests", "bench", "docs"),
    )
    # It runs Cython before it looks at its arguments.
    subprocess.run(
        [sys.executable, "setup.py", "-q", "--name"], cwd=copy, check=True, stdout=subprocess.DEVNULL
    )
    return sorted((copy / "build/cython").rglob("*.c"))


def compile_one(source, name, target, headers, out):
    # Warnings in CPython's headers are not this package's.
    command = [
        sys.executable,
        "-m",
        "ziglang",
        "cc",
        "-target",
        target,
        "-c",
        "-O0",
        "-g0",
        "-isystem",
        str(headers),
    ]
    # Without optimisation zig adds a sanitizer, which takes longer than the rest.
    command += [
        "-fno-sanitize=undefined",
        *WARNINGS,
        str(source),
        "-o",
        str(out / f"{source.stem}-{name}-{target}.o"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"{source.name}, {target}, CPython {name}:\n{done.stderr.strip()[-4000:]}"
    return None


def main():
    work, pythons = Path(sys.argv[1]).resolve(), sys.argv[2:]
    refused = [
        line
        for pattern in ("*.pyx", "*.pxd", "*.pxi")
        for path in sorted(SOURCES.rglob(pattern))
        for line in refusals(path)
    ]
    print("\n".join(refused), end="\n" * bool(refused))
    made, missing = [], []
    for python in pythons:
        configured, lacking = configurations(python, work)
        made += configured
        missing += lacking
    sources = generate(work)
    out = work / "objects"
    out.mkdir()
    jobs = [(source, *configuration, out) for configuration in made for source in sources]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        failed = [error for error in pool.map(lambda job: compile_one(*job), jobs) if error]
    print("\n\n".join(failed), end="\n\n" * bool(failed))
    platforms = sorted({target for _, target, _ in made})
    versions = list(dict.fromkeys(name for name, _, _ in made))
    parts = [f"{len(sources)} modules for {', '.join(platforms)} with CPython {', '.join(versions)}"]
    if failed:
        parts.append(f"{len(failed)} of {len(jobs)} do not compile")
    if refused:
        parts.append(f"{len(refused)} things that MSVC refuses")
    if missing:
        parts.append(f"skipped: {'; '.join(missing)}")
    if not made:
        parts[0] = "skip: nothing compiled"
    print(", ".join(parts))
    return int(bool(failed or refused))


if __name__ == "__main__":
    sys.exit(main())
