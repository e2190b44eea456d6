"""How do several workers, on one machine or many, share the trials of one search? Through a study in optuna's storage.

The storage is named by `config.search.storage`:

    a path            a journal, optuna's log of operations, and the default: it may lie on a network folder, where the
                      locks of SQLite are unreliable. Who dies in the middle of a write holds the others up for 30 s.
    a path in .db     SQLite (also .sqlite, .sqlite3, sqlite:///PATH), for the workers of one machine.
    postgresql://…    a server, for workers anywhere.

`optuna-dashboard` opens each of them: settings are optuna's parameters, a ledger's row the user attributes.

Nothing is lost or doubled, because everything rests on three things that every storage does in one step: a trial is
added with a number that nobody else gets, a waiting trial is taken by one worker, and a running trial ends once.

* A setting may have several trials, all but one of which have ended as FAIL with the mark "abandoned" (its worker fell
  silent) or "duplicate". Of the others only the one with the lowest number stands, whoever looks.
* A trial never changes hands. Who takes over from a silent worker ends its trial and adds another, under the old name
  and number; if both try, or the silent worker wakes up with a result, the first to end the trial wins.
* A worker is silent if the count that it keeps raising stays the same for `lease_seconds` on the clock of the one
  who looks. So clocks need not agree, but a worker that has just begun must watch that long before it takes over.
* A lock keeps workers from choosing at the same moment. It saves work only: without it, a few duplicates are added and
  dropped before they are trained.
"""

import contextlib
import math
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from input_pipeline.cli import UserError
from research.report import tables
from research.search import points, samplers, storages
from research.search.front import Objective
from research.search.points import Claim, Point
from research.search.trials import OverrideSet

_COUNT = "research:worker:"  # with a worker's name: the study's attribute that the worker keeps raising


class SharedStudy:
    """The trials of a search, in a storage that several workers share.

    Args:
      url: of the storage, see above.
      name: of the study; workers that give the same one share its trials.
      objectives: columns of the ledger that the sampler improves; with `log`, their logarithm (base 10).
      sampler: one of `samplers.SAMPLERS`, or "" for given settings only.
      space: what the sampler may vary.
      seed: of the sampler.
      budget: settings in all, with those of other workers, after which the sampler proposes no more.
      worker: a name that no other running worker has, and that stays when this one is started again.
      lease_seconds: silence after which a worker counts as dead.
      attempts: workers that may die over one trial before it counts as failed.

    Raises:
      UserError: optuna is missing, the sampler is unknown or has no space, the storage cannot be opened or holds a
        study of this name with other objectives.
    """

    def __init__(
        self,
        url: str,
        name: str,
        objectives: Sequence[Objective],
        sampler: str = "",
        space: samplers.Space | None = None,
        seed: int = 0,
        budget: float = math.inf,
        worker: str = "worker",
        lease_seconds: float = 120.0,
        attempts: int = 5,
    ) -> None:
        self._optuna = samplers.load_optuna()
        self._states = self._optuna.trial.TrialState
        if sampler:
            samplers.check(sampler, space)
        self.objectives, self.sampler, self.space, self.seed = tuple(objectives), sampler, space, seed
        self.budget, self.worker, self.lease_seconds, self.attempts = budget, worker, lease_seconds, attempts
        self._session, self._beat, self._fenced, self._renewed = uuid.uuid4().hex, 0, False, -math.inf
        self._held: set[int] = set()  # trials that this process was given
        self._seen: dict[str, tuple[Any, float]] = {}  # of each worker: its count, and since when it is that
        self._threads = threading.Lock()
        with storages.explained(url):
            self._exclusive = storages.mutex(url, name)
            with self._exclusive():
                self._storage = storages.open_storage(url)
                study = self._create(name)
        self._study_id = self._storage.get_study_id_from_name(name)
        if study.metric_names != self._metric_names() or study.directions != self._directions():
            raise UserError(
                f"the shared study {name} has the objectives {', '.join(study.metric_names or ['unknown'])}, not "
                f"{', '.join(self._metric_names())}; begin another study by changing config.search.study."
            )
        self.renew()

    def _metric_names(self) -> list[str]:
        return [f"log10 {o.column}" if o.log else o.column for o in self.objectives]

    def _directions(self) -> list:
        directions = self._optuna.study.StudyDirection
        return [directions.MAXIMIZE if o.maximize else directions.MINIMIZE for o in self.objectives]

    def _create(self, name: str):
        study = self._optuna.create_study(
            storage=self._storage, study_name=name, directions=self._directions(), load_if_exists=True
        )
        if study.metric_names is None and study.directions == self._directions():
            self._storage.set_study_system_attr(study._study_id, "study:metric_names", self._metric_names())
        return study

    def close(self) -> None:
        """Gives the connections back."""
        storages.close_storage(self._storage)

    # What a worker says.

    def renew(self) -> None:
        """Tells the others that this worker is alive; to be called many times within `lease_seconds`.

        It is cheap: the storage is asked ten times within that time and no more.

        Raises:
          UserError: another process has since begun under the name of this worker.
        """
        with self._threads:
            if not self._fenced and time.monotonic() - self._renewed < self.lease_seconds / 10:
                return
            self._renewed = time.monotonic()
            counts = self._storage.get_study_system_attrs(self._study_id)
            known = counts.get(_COUNT + self.worker)
            self._fenced = self._fenced or bool(self._beat and known and known[0] != self._session)
            if self._fenced:
                raise UserError(f"another process works as {self.worker}; give every worker a name of its own.")
            self._beat += 1
            self._storage.set_study_system_attr(self._study_id, _COUNT + self.worker, [self._session, self._beat])
            for key in counts:
                if key.startswith(_COUNT):
                    self._watch(key, counts)

    @contextlib.contextmanager
    def renewing(self) -> Iterator[None]:
        """Renews from a thread of its own while the body runs, for trainings that compile for minutes.

        A storage that cannot be reached for a while is tried again; a fenced worker learns it at its next question.
        """
        done = threading.Event()

        def keep() -> None:
            while not done.wait(self.lease_seconds / 5):
                with contextlib.suppress(Exception):
                    self.renew()
            self._storage.remove_session()

        thread = threading.Thread(target=keep, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def enqueue(self, override_sets: Sequence[OverrideSet]) -> None:
        """Adds the settings that the study does not have, in their order; any number of workers may call it.

        Raises:
          UserError: the study has a key in a way that cannot hold these values.
        """
        with self._exclusive():
            settings = self._read()
            sets = {samplers.identity(entry.overrides): entry for entry in override_sets}
            new = {key: entry for key, entry in sets.items() if key not in settings}
            known = {}
            for point in settings.values():
                known |= point.trials[0].distributions
            if self.space:
                known |= self.space.distributions()
            described = samplers.parameters_of_lists([entry.overrides for entry in new.values()], known)
            for (key, entry), (parameters, distributions) in zip(new.items(), described, strict=True):
                name = entry.name.replace("{", "{{").replace("}", "}}")
                facts = {points.KEY: key, points.NAME: name, points.OVERRIDES: entry.overrides}
                self._add(self._states.WAITING, parameters, distributions, facts)

    def mine(self) -> list[Claim]:
        """What this worker was training when it was last stopped, and was not given since it was started again."""
        claims = [
            point.claim(trial)
            for point in self._read().values()
            if (trial := point.standing) is not None
            and trial.state == self._states.RUNNING
            and trial.system_attrs.get(points.WORKER) == self.worker
            and trial._trial_id not in self._held
        ]
        self._held |= {claim.trial_id for claim in claims}
        return claims

    def ask(self, count: int, feasible: Callable[[dict[str, Any]], bool] | None = None) -> list[Claim]:
        """Up to `count` trials for this worker alone; fewer if there are no more now.

        A worker that was started again first gets its own trials, all of them and nothing else: its run folder has
        their checkpoints, and a sampler goes on as if nothing had happened. Then come trials of workers that fell
        silent, then waiting ones, then the sampler's. While `unfinished()` is not 0 it is worth asking again, because
        other workers may die.

        Args:
          count: how many are wanted.
          feasible: whether a setting may be trained; what it refuses never is. A waiting setting that it refuses ends
            with the status "infeasible", the sampler's proposals are replaced.

        Raises:
          UserError: another process works under the name of this worker, or hardly any setting is feasible.
        """
        self.renew()
        if claims := self.mine():
            return claims
        with self._exclusive():
            settings = self._read()
            self._drop_duplicates(settings)
            taken = self._take_over(settings, count)
            taken += self._take_waiting(settings, count - len(taken), feasible)
            if self.sampler:
                taken += self._take_proposals(settings, count - len(taken), feasible)
        settings = self._read()
        self._drop_duplicates(settings)
        standing = {point.standing._trial_id: point for point in settings.values() if point.standing is not None}
        self._held |= set(taken)
        return [standing[i].claim(standing[i].standing) for i in taken if i in standing]

    def tell(self, claim: Claim, row: Mapping[str, Any]) -> bool:
        """Enters a trained trial with its row of the ledger; False if another worker's result stands.

        Objectives that are no finite numbers (a diverged training) end the trial as PRUNED: it was trained, and has
        nothing to be compared.

        Args:
          row: as in research/report/tables.py.

        Raises:
          UserError: the row has no column of an objective.
        """
        cells = tables.flatten(row)
        if missing := [o.column for o in self.objectives if o.column not in cells]:
            raise UserError(
                f"trial {claim.name} has no {', '.join(missing)} in its ledger; name other columns in "
                "config.search.objectives."
            )
        values = [points.objective_value(cells[objective.column], objective) for objective in self.objectives]
        if all(map(math.isfinite, values)):
            return self._end(claim.trial_id, self._states.COMPLETE, cells, values)
        return self._end(claim.trial_id, self._states.PRUNED, cells)

    def fail(self, claim: Claim, reason: str, row: Mapping[str, Any] | None = None) -> bool:
        """Enters a trial that cannot be trained, and is not to be tried again; False if another result stands."""
        cells = tables.flatten({"id": claim.name, "overrides": claim.overrides} | dict(row or {}))
        return self._end(claim.trial_id, self._states.FAIL, cells | {"status": f"failed: {reason}"})

    def rows(self) -> list[dict[str, Any]]:
        """The ledger's rows of all ended trials, whoever trained them, in the order of their numbers."""
        ended = [(p, p.standing) for p in self._read().values() if p.standing and p.standing.state.is_finished()]
        return [points.row(point.claim(trial), trial) for point, trial in ended]

    def unfinished(self) -> int:
        """How many settings wait or are being trained."""
        return sum(not (p.standing and p.standing.state.is_finished()) for p in self._read().values())

    # How it is kept.

    def _read(self) -> dict[str, Point]:
        """The settings by identity, in the order of their first trials. Trials that others added count for nothing."""
        groups: dict[str, list] = {}
        trials = self._storage.get_all_trials(self._study_id, deepcopy=False)
        for trial in sorted(trials, key=lambda trial: trial.number):
            if points.KEY in trial.system_attrs:
                groups.setdefault(trial.system_attrs[points.KEY], []).append(trial)
        return {key: Point(tuple(group)) for key, group in groups.items()}

    def _add(self, state, parameters: dict, distributions: dict, facts: Mapping[str, Any]) -> int:
        template = self._optuna.trial.create_trial(
            state=state, params=parameters, distributions=distributions, system_attrs=dict(facts)
        )
        return self._storage.create_new_trial(self._study_id, template)

    def _end(self, trial_id: int, state, cells: Mapping[str, Any], values: list[float] | None = None) -> bool:
        """Ends a trial with its row; False if it had ended."""
        try:
            for key, value in ({"worker": self.worker} | dict(cells)).items():
                self._storage.set_trial_user_attr(trial_id, key, points.plain(value))
            return self._storage.set_trial_state_values(trial_id, state, values)
        except self._optuna.exceptions.UpdateFinishedTrialError:
            return False

    def _discard(self, trial, mark: str) -> bool:
        """Ends a trial that is not to count; False if it had ended."""
        try:
            self._storage.set_trial_system_attr(trial._trial_id, points.GONE, mark)
            return self._storage.set_trial_state_values(trial._trial_id, self._states.FAIL)
        except self._optuna.exceptions.UpdateFinishedTrialError:
            return False

    def _drop_duplicates(self, settings: Mapping[str, Point]) -> None:
        for point in settings.values():
            for trial in point.trials:
                if trial is not point.standing and not trial.state.is_finished():
                    self._discard(trial, "duplicate")

    def _watch(self, who: str, counts: Mapping[str, Any]) -> float:
        """Seconds on this machine's clock since the count was another."""
        now, count = time.monotonic(), counts.get(who)
        if who not in self._seen or self._seen[who][0] != count:
            self._seen[who] = (count, now)
        return now - self._seen[who][1]

    def _is_silent(self, trial, counts: Mapping[str, Any]) -> bool:
        """Whether the worker of a running trial fell silent; so does one that died before it signed."""
        worker = trial.system_attrs.get(points.WORKER)
        who = f"unsigned trial {trial.number}" if worker is None else _COUNT + worker
        with self._threads:
            return worker != self.worker and self._watch(who, counts) >= self.lease_seconds

    def _take_over(self, settings: Mapping[str, Point], count: int) -> list[int]:
        """Ends the trials of silent workers and adds others in their place, and where another worker died at that."""
        counts = self._storage.get_study_system_attrs(self._study_id)
        taken: list[int] = []
        for point in settings.values():
            trial = point.standing
            silent = trial is not None and trial.state == self._states.RUNNING and self._is_silent(trial, counts)
            if not (silent or trial is None) or len(taken) >= count:
                continue
            if silent and point.abandoned + 1 >= self.attempts:
                self.fail(point.claim(trial), f"{self.attempts} workers died over it")
            elif trial is None or self._discard(trial, "abandoned"):
                last = point.trials[-1]
                facts = {key: value for key, value in last.system_attrs.items() if key != points.GONE}
                facts[points.WORKER] = self.worker
                taken.append(self._add(self._states.RUNNING, last.params, last.distributions, facts))
        return taken

    def _take_waiting(self, settings: Mapping[str, Point], count: int, feasible: Callable | None) -> list[int]:
        taken: list[int] = []
        for point in settings.values():
            trial = point.standing
            if len(taken) >= count:
                break
            if trial is None or trial.state != self._states.WAITING:
                continue
            claim = point.claim(trial)
            if feasible is not None and not feasible(claim.overrides):
                cells = tables.flatten({"id": claim.name, "status": "infeasible", "overrides": claim.overrides})
                self._end(trial._trial_id, self._states.FAIL, cells)
                continue
            with contextlib.suppress(self._optuna.exceptions.UpdateFinishedTrialError):
                if self._storage.set_trial_state_values(trial._trial_id, self._states.RUNNING):
                    self._storage.set_trial_system_attr(trial._trial_id, points.WORKER, self.worker)
                    taken.append(trial._trial_id)
        return taken

    def _take_proposals(self, settings: Mapping[str, Point], count: int, feasible: Callable | None) -> list[int]:
        count = int(min(count, self.budget - len(settings)))
        history = [asked for point in settings.values() if (asked := self._asked(point)) is not None]
        proposals = samplers.propose(
            self.sampler,
            self.space,
            [objective.maximize for objective in self.objectives],
            history,
            max(0, count),
            self.seed,
            feasible,
            list(settings),
        )
        distributions = self.space.distributions()
        return [
            self._add(
                self._states.RUNNING,
                proposal.parameters,
                distributions,
                {
                    points.KEY: samplers.identity(proposal.overrides),
                    points.NAME: f"{self.sampler}{{}}",
                    points.OVERRIDES: proposal.overrides,
                    points.GENERATION: proposal.generation,
                    points.WORKER: self.worker,
                },
            )
            for proposal in proposals
        ]

    def _asked(self, point: Point) -> samplers.Asked | None:
        """A setting as the sampler sees it; None for one that failed."""
        trial = point.standing or point.trials[-1]
        if trial.state == self._states.FAIL and not points.is_gone(trial):
            return None
        values = tuple(trial.values) if trial.state == self._states.COMPLETE else None
        running = not trial.state.is_finished() or points.is_gone(trial)
        return samplers.Asked(point.claim(trial).overrides, running, values, trial.system_attrs.get(points.GENERATION))
