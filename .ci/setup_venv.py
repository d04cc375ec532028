"""Sets up a virtual environment for the make targets, unless it stands complete.

    python setup_venv.py VENV EXTRAS [--oldest]

EXTRAS are names of extras in ``pyproject.toml``, separated by commas; with
``--oldest`` the oldest versions that its bounds admit are installed. A record in the
environment says what it holds. Where that is what is wanted, nothing happens; an
installation that was interrupted leaves an empty record and starts afresh. Of several
such processes one installs and the others wait. Needs the standard library alone.
"""

import argparse
import contextlib
import fcntl
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RECORD = "spherical_optax.json"
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def main() -> None:
    """Parses the arguments and sets up what they ask for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("venv", type=lambda path: Path(path).absolute())
    parser.add_argument("extras", type=lambda names: set(names.split(",")))
    parser.add_argument("--oldest", action="store_true")
    args = parser.parse_args()
    args.venv.parent.mkdir(parents=True, exist_ok=True)
    try:
        with lock(args.venv) as lock_file:
            set_up(args.venv, args.extras, args.oldest, lock_file)
    except KeyboardInterrupt:
        sys.exit(f"interrupted; the next make starts {args.venv.name} afresh")
    except subprocess.CalledProcessError:
        sys.exit(f"could not set up {args.venv.name}: what went wrong stands above")


def set_up(venv: Path, extras: set[str], oldest: bool, lock_file: int) -> None:
    """Brings ``venv`` to the wanted state, unless it is there."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = pyproject["project"]
    known = set(project["optional-dependencies"])
    if not extras <= known:
        sys.exit(f"unknown extras {sorted(extras - known)}; known: {sorted(known)}")
    dependencies = json.dumps([pyproject["build-system"], project])
    wanted = {
        "dependencies": hashlib.sha256(dependencies.encode()).hexdigest(),
        "python": PYTHON,
        "place": str(venv),
        "oldest": oldest,
    }
    found = read_record(venv)
    installed = set(found.pop("extras", []))
    if found == wanted and extras <= installed:
        return
    # Other dependencies are installed over the ones there; all else starts afresh.
    update = {**found, "dependencies": wanted["dependencies"]} == wanted
    say(f"{'updating' if update else 'setting up'} {venv.name} with Python {PYTHON}")
    venv.mkdir(exist_ok=True)
    (venv / RECORD).write_text("{}\n")
    if update:
        extras |= installed & known
    else:
        create(venv, lock_file)
    install(venv, extras, lower_bounds(project) if oldest else [], lock_file)
    record = {**wanted, "extras": sorted(extras)}
    (venv / RECORD).write_text(json.dumps(record, indent=2) + "\n")


@contextlib.contextmanager
def lock(venv: Path) -> Iterator[int]:
    """Holds the lock of ``venv``; gives its file descriptor."""
    with venv.with_name(venv.name + ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that sets up {venv.name}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def read_record(venv: Path) -> dict[str, Any]:
    """What ``venv`` was set up with: nothing, where there is none or half of one."""
    if not venv.exists() or (venv.is_dir() and not any(venv.iterdir())):
        return {}
    try:
        record = json.loads((venv / RECORD).read_text())
        # The Python that it was made with may be gone.
        return record if (venv / "bin" / "python").exists() else {}
    except json.JSONDecodeError:
        return {}
    except OSError:
        sys.exit(
            f"{venv.name} exists and make did not set it up: remove it, or name "
            "another place, as in make test VENV=.venv-make"
        )


def create(venv: Path, lock_file: int) -> None:
    """Makes an empty environment, in place of what is in ``venv``."""
    # The record stays, so that half a removal is still known as ours.
    for path in venv.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != RECORD:
            path.unlink()
    # Not sys.executable: that may lie in the environment that was just removed.
    run([Path(sys.executable).resolve(), "-m", "venv", venv], lock_file)


def install(venv: Path, extras: set[str], pins: list[str], lock_file: int) -> None:
    """Installs the project with ``extras``, so that changes to its code count."""
    constraints = venv / "constraints.txt"
    constraints.write_text("\n".join(pins) + "\n")
    project = f".[{','.join(sorted(extras))}]"
    pip = [venv / "bin" / "python", "-m", "pip", "install", "--quiet"]
    run([*pip, "--constraint", constraints, "--editable", project], lock_file)


def lower_bounds(project: dict[str, Any]) -> list[str]:
    """Every ``name>=version`` of the project as ``name==version``."""
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    matches = [
        re.match(r"([\w.-]+)>=([\w.]+)", requirement)
        for group in groups
        for requirement in group
    ]
    return sorted({f"{match[1]}=={match[2]}" for match in matches if match})


def run(command: list[Any], lock_file: int) -> None:
    """Runs a command that holds the lock too: it may outlive this process."""
    subprocess.run(command, cwd=ROOT, check=True, pass_fds=[lock_file])


def say(message: str) -> None:
    """Tells the user what goes on, apart from the output of the make target."""
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
