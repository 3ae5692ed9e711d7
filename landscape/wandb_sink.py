"""wandb as an optional second place for what a run writes. Its absence or a dead network never stops a run.

open_sink returns an object with describe, log, table, image, artifact, finish and id: Silent where wandb is off or
cannot be used (one warning line), Wandb otherwise. wandb is imported only when it is asked for.
"""

import os
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

SECONDS = 20  # the longest that starting or ending wandb may hold up a run
ANSWER = 4  # seconds that its host has to answer before the run logs offline


class Silent:
    id = None

    def describe(self, values):
        pass

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
        except Exception as e:  # wandb raises its own and its dependencies' errors
            warn(f"stopped logging ({said(e)}); the run goes on, its own files hold everything")
            self.run = None

    def describe(self, values):
        """Settings that are known only now, such as the number of parameters."""
        self.guarded(lambda: self.run.config.update(values, allow_val_change=True))

    def log(self, record):
        self.guarded(lambda: self.run.log(record))

    def table(self, name, records):
        """records: list of dicts with the same keys; None where there is no value."""
        columns = list(records[0]) if records else []
        rows = [[r[c] for c in columns] for r in records]
        self.guarded(lambda: self.run.log({name: self.wandb.Table(columns=columns, data=rows)}))

    def image(self, name, path):
        """A .png, or a .gif as a video; other formats are left out."""
        kind = {".png": "Image", ".gif": "Video"}.get(Path(path).suffix)
        if kind:
            self.guarded(lambda: self.run.log({name: getattr(self.wandb, kind)(str(path))}))

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
        self.run = None


def open_sink(args, folder, config, known_id):
    """The sink that args ask for. known_id: the id of the wandb run to join, or None. args None: Silent."""
    if args is None or not getattr(args, "active_log", False):
        return Silent()
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # it holds up the exit by 10 s where the network is dead
    try:
        import wandb
    except ImportError:
        warn("is not installed: logging to the run folder only (pip install wandb)")
        return Silent()
    except Exception as e:  # a broken installation raises anything
        warn(f"cannot be imported ({said(e)}): logging to the run folder only")
        return Silent()
    lacking = lacks(wandb) if args.wandb_mode == "online" else ""
    if lacking:
        warn(f"{lacking}: logging offline (later: wandb sync)")
    for mode in ("offline",) if lacking or args.wandb_mode == "offline" else ("online", "offline"):
        try:
            run = wandb.init(project=args.wandb_project, entity=args.wandb_entity, group=args.wandb_group,
                             tags=[t for t in args.wandb_tags.split(",") if t] or None, mode=mode, config=config,
                             dir=str(folder), id=known_id, resume="allow" if known_id else None, name=folder.name,
                             settings=wandb.Settings(silent=True, console="off", **limits(wandb)))
            return Wandb(wandb, run)
        except Exception as e:  # wandb raises its own and its dependencies' errors here
            place = "offline (later: wandb sync)" if mode == "online" else "to the run folder only"
            warn(f"cannot start ({said(e)}): logging {place}")
    return Silent()


def limits(wandb):
    """The settings that bound how long wandb waits, as far as this version has them."""
    ours = {"init_timeout": SECONDS, "finish_timeout": max(1, SECONDS - 2), "finish_timeout_raises": True}
    return {k: v for k, v in ours.items() if k in wandb.Settings.model_fields}


def lacks(wandb):
    """What keeps wandb from working online, in words; "" if there is a key and its host answers in time."""
    answers = []

    def ask():
        try:
            if not (os.environ.get("WANDB_API_KEY") or wandb.api.api_key):
                answers.append("has no key (wandb login)")
                return
            url = os.environ.get("WANDB_BASE_URL") or wandb.Settings().base_url
            urllib.request.urlopen(url, timeout=ANSWER).close()  # it goes through the proxies that the user has set
            answers.append("")
        except urllib.error.HTTPError:  # an answer all the same
            answers.append("")
        except Exception as e:
            answers.append(f"cannot be reached ({said(e)})")

    asking = threading.Thread(target=ask, daemon=True)  # looking up a host's name knows no time limit
    asking.start()
    asking.join(ANSWER)
    return answers[0] if answers else f"did not answer in {ANSWER} s"


def said(error):
    """The first line of an error's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def warn(what):
    print(f"wandb {what}", file=sys.stderr, flush=True)
