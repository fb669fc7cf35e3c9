"""A fleet of real processes: a broker, servers and agents."""

import os
import pathlib
import signal
import time

from conftest import HASHFINDER, Process, Server, free_port

BROKERS = pathlib.Path(os.environ.get("BROKERS", "target/brokers"))
VERSION, TOO_OLD = "2.15.1", "2.12.2"

# A slow kernel, so that searches of a few million secrets take long enough to leave their server.
SLOW = ["--kernel", "portable"]


class Broker(Process):
    def __init__(self, folder, port, version=VERSION, config=None):
        command = [self.program(version), "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", folder]
        command += ["-c", config] if config else []
        super().__init__(command)
        self.wait_for("Server is ready")

    @staticmethod
    def program(version=VERSION):
        return BROKERS / version / "bin/nats-server"


class Fleet:
    """The processes of one fleet. They are killed at the end of the test."""

    def __init__(self, folder, processes, **broker):
        self.folder, self.processes, self.options = folder, processes, broker
        self.port = free_port()
        self.url = f"nats://127.0.0.1:{self.port}"
        self.start_broker()

    def keep(self, process):
        self.processes.append(process)
        return process

    def start_broker(self):
        self.broker = self.keep(Broker(self.folder, self.port, **self.options))

    def restart_broker(self):
        self.broker.send(signal.SIGKILL)
        self.broker.wait()
        self.start_broker()

    def server(self, *flags, **kwargs):
        flags = ["--fleet", self.url, "--workers", "1", *SLOW, *flags]
        return self.keep(Server(*flags, **kwargs))

    def agent(self, *flags):
        command = [HASHFINDER, "agent", "--fleet", self.url, "--threads", "1", *SLOW, *flags]
        agent = self.keep(Process(command))
        agent.wait_for("ready agent=")
        return agent

    def leader(self, *servers):
        """Waits until one of the servers leads, and returns it and the others."""
        # Only the leader's log says so, and nothing says that a server does not lead.
        lines = {server: list(server.log) for server in servers}
        while True:
            for server in servers:
                while not server._stderr.empty():
                    line = server._stderr.get()
                    server.log.append(line)
                    lines[server].append(line)
                if any("this server leads the fleet" in line for line in lines[server]):
                    return server, [other for other in servers if other is not server]
            time.sleep(0.05)
