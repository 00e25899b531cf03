"""The source of the function that the gateway runs in a sandbox to test that the sandbox holds."""

# Returns the names of the attempts that succeed. `folder` is on the outside and has a file that all may read.
PROBE = """
def probe(port, folder, uid):
    import glob, os, time

    def passes(attempt):
        try:
            return bool(attempt())
        except (OSError, MemoryError):
            return False

    def forks():
        for n in range(64):
            if os.fork() == 0:
                time.sleep(60)
        return True

    def writes(path):
        with open(path, "wb") as file:
            return file.write(b"x")

    places = [folder, "/", "/usr", "/etc", "/dev", "/dev/shm", "/proc", "/var/tmp", "/home", "/root"]
    attempts = {
        # The filter refuses sockets, so the namespace is looked at.
        "network": lambda: f":{port:04X} " in open("/proc/net/tcp").read(),
        "sockets": lambda: folder in open("/proc/net/unix").read(),
        # A system call that the filter refuses.
        "calls": lambda: os.memfd_create("probe"),
        "reading": lambda: open(folder + "/secret"),
        "writing": lambda: [place for place in places if passes(lambda: writes(place + "/.mnemogate"))],
        "processes": lambda: len(glob.glob("/proc/[0-9]*")) > 3,
        "user": lambda: os.getuid() != uid or os.geteuid() != uid,
        "variables": lambda: set(os.environ) - {"PATH", "HOME", "LANG", "LC_CTYPE", "OPENBLAS_NUM_THREADS", "PWD"},
        # A gibibyte, which is above the limit.
        "memory": lambda: bytearray(1 << 30),
        "forks": forks,
    }
    return [name for name, attempt in attempts.items() if passes(attempt)]
"""
