"""Records a search at a pseudo-terminal for some seconds, and writes it as an animated SVG.

usage: picture.py PROGRAM SVG SECONDS [operation | fleet BROKER]

With `operation`, it records how an operation is watched whose server is killed in the middle, and
starts again. With `fleet`, it records the status of a fleet while an agent and the leader are killed,
and another agent joins.

The picture shows exactly what the program wrote, when it wrote it. Without animation, it shows the
last moment before ctrl-C.
"""

import contextlib
import os
import pty
import select
import socket
import subprocess
import sys
import tempfile
import termios
import time
from html import escape

import pyte

SEARCH = ["hashfinder", "--ideal-distance", "1", "--show-inferior", "3"]
COLUMNS, ROWS = 96, 13

# How long a killed server is away.
AWAY_S = 1.5

# How long the last frame is shown before the animation restarts.
END_S = 5.0

# Size of a character, and the margin around the text, in pixels.
WIDTH, HEIGHT, MARGIN = 8.43, 19, 18

STYLE = """
text { font: 14px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
       white-space: pre; fill: #1f2328 }
rect { fill: #f6f8fa; stroke: #d1d9e0 }
.match { fill: #1a7f37; font-weight: bold }
.prompt { fill: #59636e }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  rect { fill: #0d1117; stroke: #3d444d }
  .match { fill: #3fb950 }
  .prompt { fill: #9198a1 }
}
g { opacity: 0 }
.still { opacity: 1 }
@media (prefers-reduced-motion: reduce) { g { animation: none !important } }
"""


def free_port():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return unused.getsockname()[1]


class Server:
    """A server that saves operations, and can be killed."""

    def __init__(self, program, folder):
        self.port = free_port()
        self.command = [program, "serve", "--port", str(self.port), "--state", folder]
        self.start()

    def start(self):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(self.command, text=True, **pipes)
        self.process.stdout.readline()

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


def record(program, command, seconds, environment=(), steps=(), ends_with=130):
    """Runs a command at a pseudo-terminal. Returns the changes of its screen as pairs (time in
    seconds, rows), and the time at which ctrl-C was pressed. `steps` are pairs (time, function) of
    what happens meanwhile. `ends_with` is the exit code after ctrl-C."""
    steps = list(steps)
    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(screen)
    stream.feed(f"$ hashfinder {' '.join(command)}\r\n".encode())
    child, terminal = pty.fork()
    if child == 0:
        attributes = termios.tcgetattr(0)
        # At ctrl-C, a terminal would discard output that was not shown yet.
        attributes[3] |= termios.NOFLSH
        termios.tcsetattr(0, termios.TCSANOW, attributes)
        termios.tcsetwinsize(0, (ROWS, COLUMNS))
        given = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
        given |= {"TERM": "xterm-256color"} | dict(environment)
        os.execve(program, ["hashfinder", *command], given)
    began, pressed = time.monotonic(), None
    frames = [(0.0, rows_of(screen))]
    while True:
        elapsed = time.monotonic() - began
        if steps and elapsed >= steps[0][0]:
            steps.pop(0)[1]()
        if pressed is None and elapsed >= seconds:
            pressed = elapsed
            os.write(terminal, b"\x03")
        ready, _, _ = select.select([terminal], [], [], 0.05)
        if ready:
            try:
                stream.feed(os.read(terminal, 65536))
            except OSError:
                # The program has exited.
                break
        # Output that was written in one piece becomes one frame.
        elif (rows := rows_of(screen)) != frames[-1][1]:
            frames.append((elapsed, rows))
    frames.append((time.monotonic() - began, rows_of(screen)))
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code != ends_with:
        text = "\n".join(line.rstrip() for line in screen.display)
        sys.exit(f"the program ended with {code}, not {ends_with}; the screen:\n{text}")
    return frames, pressed


def rows_of(screen):
    """Returns the rows of a screen, as runs of characters of one kind: (column, kind, text)."""
    rows = []
    for y in range(ROWS):
        runs = []
        for x in range(COLUMNS):
            character = screen.buffer[y][x]
            kind = "match" if character.fg == "green" else "prompt" if (x, y) == (0, 0) else ""
            if runs and runs[-1][1] == kind:
                runs[-1] = (*runs[-1][:2], runs[-1][2] + character.data)
            else:
                runs.append((x, kind, character.data))
        rows.append(tuple(run for run in runs if run[2].strip()))
    return tuple(rows)


def spans(frames, end):
    """Returns the rows by the time when they were visible: {(begin, end): [(y, row)]}."""
    found = {}
    for y in range(ROWS):
        begin, row = 0.0, ()
        for at, rows in [*frames, (end, None)]:
            now = rows[y] if rows else None
            if now != row:
                if row:
                    found.setdefault((begin, at), []).append((y, row))
                begin, row = at, now
    return found


def text_of(y, row):
    for x, kind, text in row:
        begin = len(text) - len(text.lstrip())
        text = text.strip()
        # The explicit width keeps columns aligned in any font.
        yield (
            f'<text x="{MARGIN + (x + begin) * WIDTH:.1f}" y="{MARGIN + (y + 0.78) * HEIGHT:.0f}"'
            f' textLength="{len(text) * WIDTH:.1f}"' + (f' class="{kind}"' if kind else "")
            + f">{escape(text)}</text>"
        )


def svg(command, frames, pressed):
    end = frames[-1][0] + END_S
    still = max(at for at, _ in frames if at < pressed)
    used = max(y + 1 for _, rows in frames for y in range(ROWS) if rows[y])
    width, height = COLUMNS * WIDTH + 2 * MARGIN, used * HEIGHT + 2 * MARGIN
    keyframes, groups = [], []
    for number, ((begin, until), rows) in enumerate(spans(frames, end).items()):
        texts = "".join(text for y, row in rows for text in text_of(y, row))
        shown = ' class="still"' if begin <= still < until else ""
        if (begin, until) == (0.0, end):
            groups.append(f"<g{shown}>{texts}</g>")
            continue
        steps = f"0% {{ opacity: {int(begin == 0)} }} {100 * begin / end:.2f}% {{ opacity: 1 }}"
        if until < end:
            steps += f" {100 * until / end:.2f}% {{ opacity: 0 }}"
        else:
            steps += " 100% { opacity: 1 }"
        keyframes.append(f"@keyframes s{number} {{ {steps} }}")
        style = f"animation: s{number} {end:.2f}s step-end infinite"
        groups.append(f'<g{shown} style="{style}">{texts}</g>')
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}"'
        f' width="{width:.0f}" height="{height:.0f}" role="img" aria-labelledby="title">',
        f'<title id="title">hashfinder {" ".join(command)}, stopped with ctrl-C</title>',
        f"<style>{STYLE}{chr(10).join(keyframes)}</style>",
        f'<rect x="0.5" y="0.5" width="{width - 1:.0f}" height="{height - 1:.0f}" rx="8"/>',
        *groups,
        "</svg>\n",
    ])


def operation(program, seconds):
    """Records an operation whose server is killed in the middle, and starts again."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        server = Server(program, folder)
        stack.callback(lambda: server.kill())
        at = {"HASHFINDER_SERVER": f"127.0.0.1:{server.port}", "HASHFINDER_CONFIG": os.devnull}
        start = [program, "find", *SEARCH, "--detach", "--quiet"]
        started = subprocess.run(
            start, env=os.environ | at, stdout=subprocess.PIPE, text=True, check=True
        )
        command = ["operations", "watch", started.stdout.strip()]
        steps = [(seconds / 2, server.kill), (seconds / 2 + AWAY_S, server.start)]
        return command, *record(program, command, seconds + AWAY_S, at, steps)


class Fleet:
    """The processes of a fleet on this machine."""

    def __init__(self, program, broker, folder, stack):
        self.program, self.folder, self.stack = program, folder, stack
        port = free_port()
        self.url = f"nats://127.0.0.1:{port}"
        at = ["-a", "127.0.0.1", "-p", str(port), "-js", "-sd", f"{folder}/store"]
        self.start([broker, *at], "Server is ready")
        self.ports = [free_port(), free_port()]
        serve = [program, "serve", "--workers", "1", "--fleet", self.url, "--port"]
        self.servers = [self.start([*serve, str(port)], "listening on") for port in self.ports]
        self.agents = [self.agent() for _ in range(3)]

    def start(self, command, until):
        log = f"{self.folder}/{free_port()}.log"
        with open(log, "w") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file)
        self.stack.callback(self.kill, process)
        deadline = time.monotonic() + 60
        while until not in open(log).read():
            if time.monotonic() > deadline or process.poll() is not None:
                sys.exit(f"no {until!r}: {open(log).read()}")
            time.sleep(0.02)
        return process

    def agent(self):
        command = [self.program, "agent", "--threads", "1", "--fleet", self.url]
        return self.start(command, "following the leader")

    def kill(self, process):
        process.kill()
        process.wait()

    def kill_leader(self):
        """Kills the leader. Its name is that of the machine, so the status does not say which it is."""
        leads = next(
            server for server in self.servers
            if "this server leads" in open(f"/proc/{server.pid}/fd/2").read()
        )
        self.kill(leads)


def fleet(program, seconds, broker):
    """Records the status of a fleet."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        machines = Fleet(program, broker, folder, stack)
        for port in machines.ports:
            # When the leader is dead, the other search continues.
            search = [program, "find", "hashfinderfleet", "--server", f"127.0.0.1:{port}"]
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            stack.callback(machines.kill, subprocess.Popen(search, **quiet))
        steps = [
            (seconds / 5, lambda: machines.kill(machines.agents[0])),
            (seconds / 2, machines.kill_leader),
            (seconds * 4 / 5, machines.agent),
        ]
        at = {"HASHFINDER_FLEET": machines.url, "HASHFINDER_CONFIG": os.devnull}
        command = ["fleet", "status"]
        return command, *record(program, command, seconds, at, steps, ends_with=0)


def main():
    program, path, seconds, *what = sys.argv[1:]
    if what == ["operation"]:
        command, frames, pressed = operation(program, float(seconds))
    elif what[:1] == ["fleet"]:
        command, frames, pressed = fleet(program, float(seconds), what[1])
    else:
        command = ["find", *SEARCH]
        frames, pressed = record(program, command, float(seconds))
    with open(path, "w") as file:
        file.write(svg(command, frames, pressed))


if __name__ == "__main__":
    main()
