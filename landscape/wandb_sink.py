"""wandb as an optional second place for what a run writes. Its absence or a dead network never stops a run.

open_sink returns an object with log, table, image, artifact, finish and id: Silent where wandb is off or cannot be
used (one warning line), Wandb otherwise. wandb is imported only when it is asked for.
"""

import os
import socket
import sys
import threading
from pathlib import Path
from urllib.parse import urlparse

SECONDS = 20  # the longest that starting or ending wandb may hold up a run


class Silent:
    id = None

    def log(self, record):
        pass

    def table(self, name, records):
        pass

    def image(self, name, path):
        pass

    def artifact(self, path):
        pass

    def finish(self):
        pass


class Wandb:
    """Passes everything on; the first failure is said once and turns the sink silent."""

    def __init__(self, wandb, run):
        self.wandb, self.run, self.id = wandb, run, run.id

    def guarded(self, what, *args, **options):
        if self.run is None:
            return
        try:
            what(*args, **options)
        except Exception as e:  # whatever wandb raises, the run goes on: its own files hold everything
            warn(f"stopped logging: {e}")
            self.run = None

    def log(self, record):
        self.guarded(lambda: self.run.log(record))

    def table(self, name, records):
        """records: list of dicts with the same keys."""
        columns = list(records[0]) if records else []
        rows = [[r[c] for c in columns] for r in records]
        self.guarded(lambda: self.run.log({name: self.wandb.Table(columns=columns, data=rows)}))

    def image(self, name, path):
        if Path(path).suffix == ".png":
            self.guarded(lambda: self.run.log({name: self.wandb.Image(str(path))}))

    def artifact(self, path):
        def upload():
            artifact = self.wandb.Artifact(f"model-{self.id}", type="model")
            artifact.add_file(str(path))
            self.run.log_artifact(artifact)
        self.guarded(upload)

    def finish(self):
        if self.run is None:
            return
        ending = threading.Thread(target=self.guarded, args=(self.run.finish,), daemon=True)
        ending.start()
        ending.join(SECONDS)
        if ending.is_alive():
            warn("did not finish uploading in time; the local files are whole, see 'wandb sync'")


def open_sink(args, folder, config, known_id):
    """The sink that args ask for. known_id: the id of the wandb run to join, or None. args None: Silent."""
    if args is None or not getattr(args, "active_log", False):
        return Silent()
    os.environ.setdefault("WANDB_SILENT", "true")
    try:
        import wandb
    except ImportError:
        warn("is not installed: logging to the run folder only (pip install wandb)")
        return Silent()
    mode = args.wandb_mode
    if mode == "online" and not reachable():
        warn("has no key or cannot be reached: logging offline (later: wandb sync)")
        mode = "offline"
    try:
        run = wandb.init(project=args.wandb_project, entity=args.wandb_entity, group=args.wandb_group,
                         tags=[t for t in args.wandb_tags.split(",") if t] or None, mode=mode, config=config,
                         dir=str(folder), id=known_id, resume="allow" if known_id else None, name=folder.name,
                         settings=wandb.Settings(init_timeout=SECONDS, silent=True, console="off"))
    except Exception as e:  # wandb raises its own and its dependencies' errors here
        warn(f"cannot start ({e}): logging to the run folder only")
        return Silent()
    return Wandb(wandb, run)


def reachable():
    """Is there a key, and does wandb's host answer within 3 s?"""
    try:
        import wandb

        if not (os.environ.get("WANDB_API_KEY") or wandb.api.api_key):
            return False
        url = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
        with socket.create_connection((url.hostname, url.port or (443 if url.scheme == "https" else 80)), timeout=3):
            return True
    except OSError:
        return False


def warn(what):
    print(f"wandb {what}", file=sys.stderr, flush=True)
