"""Look at one work dir and decide: what `plan` prints, and what `prune` then carries out. Reads, never writes.

The one place where scan, verify, the pointers and what is remembered become the arguments of the pure plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ..core import kinds
from ..core.budget import Disk
from ..core.checkpoint import Checkpoint, Content, Durability, State
from ..core.entry import Entry, LeftAlone, Unreadable
from ..core.finder import Finder
from ..core.forms import Known
from ..core.keyed import names_from
from ..core.layouts import DEFAULT_TEMPLATES, LAYOUTS
from ..core.memory import Memory, Seen
from ..core.naming import Template, joined, named_by
from ..core.plan import plan
from ..core.policy import Policy
from ..core.schedule import DIRECTORY, Schedule
from ..core.survey import Findings, Survey
from ..disk.descriptors import FORBIDDEN
from ..disk.filesystem import is_local
from ..disk.opened import OpenedDirectory
from ..errors import CkptdError, RefusedError, why
from ..inspect.scan import Found, scan
from ..inspect.verdict import Settling, Verdict, age_seconds, judge
from ..text.advice import advice_on
from ..text.voice import Voice
from ..workdir.schedules import read_schedules
from ..workdir.state import read_state
from ..workdir.workdir import WorkDir
from .protections import Protections

if TYPE_CHECKING:
    from ..core.half_saved import Former
    from ..core.ranks import Told
    from ..core.siblings import Files
    from ..inspect.metrics import Scores
    from .floor import Room, RoomKeeper
    from .patience import Patience

_KNOWN_NAMES = {template.text for template in DEFAULT_TEMPLATES}


@dataclass
class _Judged:
    checkpoints: list[Checkpoint] = field(default_factory=list)
    left_alone: list[LeftAlone] = field(default_factory=list)
    unreadable: list[Unreadable] = field(default_factory=list)
    settles_s: float | None = None
    files: dict[str, Files] = field(default_factory=dict)  # of directories that are whole, their parts
    trainers: set[str] = field(default_factory=set)  # what a Trainer has saved, whole
    former: Former | None = None  # what the files of checkpoints of several were, where there are any


@dataclass
class Surveyor:
    """Surveys one work dir again and again; judges an unchanged checkpoint only once.

    memory: what passes of this process saw; None until the state file has been read.
    as_remembered: where the policy names no templates, look also for those of earlier passes.
    hasty: what its structure proves whole need not settle. alone: nobody can be writing on this host any more.
    patience: tells which runs have ended, where a new save is to be waited for; None: none is. room_keeper: of a policy
    with a floor; room: what it has found at the last look.
    """

    work: WorkDir
    policy: Policy
    memory: Memory | None = None
    as_remembered: bool = False
    hasty: bool = False
    alone: bool = False
    patience: Patience | None = None
    voice: Voice = field(default_factory=Voice)
    findings: Findings = field(default_factory=Findings)
    _verdicts: dict[str, tuple[Entry, Verdict]] = field(default_factory=dict)
    _scores: Scores | None = None
    _finder: tuple[frozenset[str], Finder] | None = None
    _local: bool | None = None
    room: Room | None = None
    room_keeper: RoomKeeper | None = None

    def __post_init__(self) -> None:
        if self.policy.keep_best:
            from ..inspect.metrics import Scores  # here, because few go by scores

            wanted = frozenset(keeper.metric for keeper in self.policy.keep_best)
            # Not this object: among ten thousand, cycles are not collected in time.
            voice, path = self.voice, self.work.path
            self._scores = Scores(wanted, lambda text: voice.once("scores", f"{path}/{text}", of=text))
        self.protections = Protections(self.work, self.policy, as_remembered=self.as_remembered)
        if self.policy.min_free is not None:
            from .floor import RoomKeeper  # here, because those who only read seldom ask for room

            self.room_keeper = RoomKeeper(self.work, self.policy.min_free)

    def survey(self, now_ns: int, *, strict: bool = False) -> Survey:
        """Look and decide. strict: without what is still to be read, else as if all of that were good.

        Raises OSError if the work dir cannot be read, CkptdError for what a person must mend.
        """
        work = self.work
        own_fd = work.open_own()
        remembered = self._remember(own_fd)
        declared, ignored = read_schedules(own_fd, now_ns)
        place = f"{work.own_path}/{DIRECTORY}"
        self.voice.all_of("schedules", {name: f"ignored {place}/{name}: {ignored[name]}" for name in ignored})
        self.protections.pointer.check_ours({said.work_dir for said in declared.values() if said.work_dir})
        named = {*declared, *self._known_before(remembered)} - _KNOWN_NAMES
        finder = self._finder_of(frozenset(named), declared)
        before = [names for text in (remembered.series if remembered else ()) if (names := finder.series_of(text))]
        found = scan(work.path, work.fd, finder)
        here = (known.names for known in found.known.values())
        patterns = list({names.text: names for names in (*before, *here)}.values())
        asked_for = named | set(self.policy.templates)
        judged = self._judge(found, remembered, asked_for, now_ns, strict=strict)
        ranks = self._tell_ranks(judged, found, remembered, now_ns)
        usual = self._compare(judged, remembered, declared, now_ns) if judged.files else {}
        there = {entry.name for entry in found.entries}
        self.findings.forget(lambda name: name not in there)
        protected = self.protections.of(found, patterns, judged.trainers)
        pointed, latest = self.protections.pointed(), self.protections.latest()
        troubled = {each.file: each.trouble_text for each in self.protections.told if each.trouble}
        self.voice.all_of("trackers", {file: f"nothing goes in {work.path}: {troubled[file]}" for file in troubled})
        trusted = None
        if not remembered:
            whole = {file.name: c.name for c in judged.checkpoints if c.state.whole for file in c.entry.files}
            trusted = self.protections.trusted(whole)
        ended: frozenset[str] | None = None if self.patience is None else frozenset()
        room = self._look_at_room(now_ns, found, judged)
        while True:
            decided = plan(
                judged.checkpoints, self.policy, memory=remembered or Memory(), now_ns=now_ns,
                protected=protected, declared=declared, trusted=trusted, patterns=patterns,
                ended=_any if ended is None else ended.__contains__, disk=room,
                latest=latest, pointed=named_by(pointed) if pointed else None,
            )  # fmt: skip
            if self.patience is not None and not ended:
                waiting = [series for series in decided.series if series.grid.waits_for_end]
                ended, again_s = self.patience.ended(waiting, dir_fd=work.fd, now_ns=now_ns)
                if again_s is not None:
                    judged.settles_s = min(again_s, judged.settles_s or again_s)
                if ended:
                    continue
            used = self.protections.in_use(d.checkpoint.entry for d in decided.prune)
            if not used:
                break
            for name, use in used.items():
                protected.setdefault(name, []).append(use)
        if ranks is not None:
            decided = replace(decided, memory=ranks.written_into(decided.memory))
        decided = replace(decided, memory=decided.memory.with_usual(usual))
        overruled = {series.grid.template.text for series in decided.series if series.grid.ignored}
        return Survey(
            decided,
            tuple(judged.left_alone),
            tuple(judged.unreadable),
            remembered,
            pointed,
            {text: said for text, said in declared.items() if text not in overruled},
            (*advice_on(decided, self.policy, remembered is None, trusted), *self.protections.advice()),
            judged.settles_s,
            named=frozenset({*declared, *(remembered.series if remembered else ())}),
            links=frozenset(found.linked.values()) | self.protections.trackers(),
        )

    def _tell_ranks(self, judged: _Judged, found: Found, remembered: Memory | None, now_ns: int) -> Told | None:
        """Have those judged in doubt of which nobody can say whether all ranks are there."""
        names = {text: known.names for text, known in found.known.items() if known.names.is_group}
        if not names:
            return None
        from ..core.ranks import tell_ranks  # here, because most checkpoints are one file

        quiet_s = self._settling().quiet_s(marked=False)
        told = tell_ranks(
            judged.checkpoints, names, remembered or Memory(), max_keep=self.policy.max_keep or 1,
            settles_s=lambda entry: quiet_s - age_seconds(entry, now_ns),
        )  # fmt: skip
        judged.checkpoints = told.checkpoints
        if told.settles_s is not None:
            judged.settles_s = min(told.settles_s, judged.settles_s or told.settles_s)
        return told

    def _look_at_room(self, now_ns: int, found: Found, judged: _Judged) -> Disk | None:
        if self.room_keeper is None:
            return None
        self.room = self.room_keeper.look(now_ns, found.entries)
        judged.settles_s = min(self.room.again_s, judged.settles_s or self.room.again_s)
        self.voice.all_of("room", {"": self.room.doubt} if self.room.doubt else {})
        return self.room.disk

    def _remember(self, own_fd: int | None) -> Memory | None:
        if self.memory is None and own_fd is not None:
            try:
                self.memory = read_state(own_fd)
                self.voice.forget("memory")
            except RefusedError:
                raise
            except CkptdError as error:
                self.voice.once("memory", f"{self.work.own_path}/{error}; met as if for the first time")
        return self.memory

    def _known_before(self, remembered: Memory | None) -> set[str]:
        """The series of earlier passes that are looked for. Also by who deletes those in which files of known names are
        parts: nobody has said that these are whole by themselves."""
        known = remembered.in_force if remembered else set()
        if self.as_remembered:
            return known
        parts = {text: joined(text) for text in known}
        return {text for text in known if len(parts[text]) > 1 and not _KNOWN_NAMES.isdisjoint(parts[text])}

    def _finder_of(self, named: frozenset[str], declared: dict[str, Schedule]) -> Finder:
        """What finds checkpoints here; `named` are the series that are known beside the policy's, declared or not."""
        if self._finder is None or self._finder[0] != named:
            said = [Template(text) for text in declared if text in named]
            remembered = [names_from(text) for text in sorted(named - declared.keys())]
            self._finder = named, self.policy.finder(said, remembered)
        return self._finder[1]

    def _judge(
        self, found: Found, remembered: Memory | None, asked_for: set[str], now_ns: int, *, strict: bool
    ) -> _Judged:
        """Turn entries into checkpoints; what is none by its bytes is left alone."""
        judged = _Judged(left_alone=list(found.left_alone))
        seen = remembered.seen if remembered else {}
        verdicts: dict[str, tuple[Entry, Verdict]] = {}
        for entry in found.entries:
            before, verdict = self._verdicts.get(entry.name, (None, None))
            if before == entry:
                entry = before  # it knows already what is asked of it
            if verdict is None or before is not entry:
                settling = self._settling(ever=_is_written_over(entry, seen))
                try:
                    names = found.known[entry.series]
                    verdict = self._verdict(entry, names, settling, now_ns)
                    if self.as_remembered and verdict.settles_s is not None and self._was_whole(entry, seen):
                        # For a reader: only its age speaks against it, and an earlier pass has waited for that already.
                        settled = self._verdict(entry, names, Settling(settling.local, 0.0), now_ns)
                        verdict = settled if settled.state.whole else verdict
                except (FileNotFoundError, RefusedError):
                    continue  # gone, or something else by now: the next look tells
                except OSError as error:
                    if entry.name not in seen and error.errno not in FORBIDDEN:
                        raise  # the disk's trouble, not the file's: an order without this one would be a wrong one
                    judged.unreadable.append(Unreadable(entry, why(error)))
                    # What was seen before keeps its place; what was not is not met before it can be read.
                    verdict = Verdict(State.IN_FLIGHT, f"cannot be read: {why(error)}", entry.name in seen)
            if not (verdict.known or entry.series in asked_for or found.known[entry.series].kinds is None):
                judged.left_alone.append(
                    LeftAlone(entry.name, verdict.structure, entry.is_dir and verdict.state is State.IN_FLIGHT)
                )
                continue
            reason = _other_kind(entry.name, verdict, found.known[entry.series])
            if reason:
                judged.left_alone.append(
                    LeftAlone(entry.name, reason, entry.is_dir and verdict.state is State.IN_FLIGHT)
                )
                continue
            if verdict.kind == kinds.TRAINER and verdict.state.whole:
                judged.trainers.add(entry.name)
            if verdict.state is not State.IN_FLIGHT and not verdict.hasty:
                verdicts[entry.name] = entry, verdict
            elif verdict.settles_s is not None:
                judged.settles_s = min(verdict.settles_s, judged.settles_s or verdict.settles_s)
            checkpoint = self._checkpoint(entry, verdict, seen.get(entry.name))
            if entry.parts and checkpoint.state.whole:
                checkpoint = self._unless_mixed(checkpoint, judged, seen, now_ns)
            if self._scores is not None:
                named = found.known[entry.series].names.metrics_of(entry.name)
                checkpoint = replace(checkpoint, metrics=self._scores.of(entry, named, OpenedDirectory(self.work.fd)))
            if verdict.checksum and checkpoint.state is not State.DOUBTFUL:
                known = seen.get(entry.name)
                is_to_be_read = self._content(entry, known) is None and self.policy.verify == "full"
                ahead = Content.UNREAD if strict else Content.AWAITED
                checkpoint = replace(checkpoint, content=ahead if is_to_be_read else Content.CHECKED)
            judged.checkpoints.append(checkpoint)
            if verdict.files is not None and checkpoint.fit:
                judged.files[entry.name] = verdict.files
        self._verdicts = verdicts
        judged.left_alone.sort(key=lambda each: each.name)
        return judged

    def _verdict(self, entry: Entry, known: Known, settling: Settling, now_ns: int) -> Verdict:
        if entry.parts:
            from ..core.groups import Group  # here, because most checkpoints are one file
            from ..inspect.grouping import judge_group

            assert isinstance(known.names, Group)
            return judge_group(entry, known.names, dir_fd=self.work.fd, settling=settling, now_ns=now_ns)
        return judge(
            entry, dir_fd=self.work.fd, settling=settling, now_ns=now_ns, wanted=known.kinds,
            by_template=known.kinds is None,
        )  # fmt: skip

    def _compare(
        self, judged: _Judged, remembered: Memory | None, declared: Mapping[str, Schedule], now_ns: int
    ) -> dict[str, tuple[str, ...]]:
        """Put those in doubt that lack what the older ones have; what the saves of each series have in common."""
        from ..core.siblings import compare_all, without  # here, because most runs save files

        def keep(series: str) -> int | None:
            said = declared.get(series)
            return self.policy.max_keep or (said.max_keep if said else None)

        found = compare_all(
            judged.checkpoints, judged.files, remembered or Memory(), keep, now_ns=now_ns,
            reads_only=self.as_remembered,
        )  # fmt: skip
        judged.checkpoints = found.checkpoints
        if found.until_ns is not None:
            again_s = (found.until_ns - now_ns) / 1e9
            judged.settles_s = min(again_s, judged.settles_s or again_s)
        for name, lacks in found.accepted.items():
            text = f"{without(lacks)} as the saves before it have; it counts as complete all the same, since ten save "
            self.voice.once("lacks", f"{self.work.path}/{name}: {text}intervals have passed", of=name)
        return found.usual

    def _checkpoint(self, entry: Entry, verdict: Verdict, known: Seen | None) -> Checkpoint:
        if verdict.late and known is not None and (known.was_written_over(entry) or known.was_in_doubt(entry)):
            return Checkpoint(entry, State.DOUBTFUL, verdict.late)
        if verdict.state is State.DOUBTFUL:
            return Checkpoint(entry, verdict.state, verdict.evidence)
        fault = self._content(entry, known)
        if fault:
            return Checkpoint(entry, State.INCOMPLETE, fault)
        was_read = fault is not None and verdict.state.whole
        evidence = f"{verdict.structure}, content read" if was_read else verdict.evidence
        remembered = known.about(entry).durability if known and known.is_same_file(entry) else Durability.UNKNOWN
        durability = self.findings.durability.get(entry.bytes_on_disk, remembered)
        return Checkpoint(entry, verdict.state, evidence, durability)

    def _unless_mixed(
        self, checkpoint: Checkpoint, judged: _Judged, seen: Mapping[str, Seen], now_ns: int
    ) -> Checkpoint:
        """As it is, or in flight, and later in doubt, where its files are of two saves."""
        from ..core.half_saved import Former  # here, because most checkpoints are one file

        if judged.former is None:
            judged.former = Former(seen)
        entry, mixed = checkpoint.entry, judged.former.mixed(checkpoint.entry)
        if not mixed:
            return checkpoint
        again_s = self._settling().quiet_s() - age_seconds(entry, now_ns)
        if again_s <= 0:  # whoever saves has gone
            return Checkpoint(entry, State.DOUBTFUL, mixed)
        judged.settles_s = min(again_s, judged.settles_s or again_s)
        return Checkpoint(entry, State.IN_FLIGHT, mixed)

    def _content(self, entry: Entry, known: Seen | None) -> str | None:
        remembered = known.content if known is not None and known.bytes_on_disk == entry.bytes_on_disk else None
        return self.findings.content.get(entry.bytes_on_disk, remembered)

    def _settling(self, *, ever: bool = False) -> Settling:
        """How long something must settle; `ever`: though the job has ended, as before."""
        if self._local is None:
            self._local = is_local(self.work.fd)
        alone = self.alone and self._local and not ever
        return Settling(self._local, 0.0 if alone else self.policy.settle_s, hasty=self.hasty and not ever)

    def _was_whole(self, entry: Entry, seen: Mapping[str, Seen]) -> bool:
        """Whether an earlier pass has judged these bytes complete, and nothing in them is younger than that."""
        known = seen.get(entry.name)
        if known is None or not known.whole or not known.is_same_file(entry) or known.changes != entry.changes:
            return False
        return entry.touched_ns <= entry.mtime_ns or entry.touched_ns <= self.protections.pointed_ns(entry.name)


def _any(series: str) -> bool:
    return True


def _is_written_over(entry: Entry, seen: Mapping[str, Seen]) -> bool:
    """Whether a directory was another checkpoint before: what its structure lacks of this one, that one may have."""
    known = seen.get(entry.name)
    return entry.is_dir and known is not None and not known.is_same_file(entry)


def _other_kind(name: str, verdict: Verdict, known: Known) -> str:
    """Why bytes of a known kind are left alone, where their name is another framework's; "" if they are not."""
    if known.kinds is None or not verdict.kind or verdict.kind in known.kinds:
        return ""
    others = (layout for layout in LAYOUTS if verdict.kind in layout.kinds and not layout.by_itself)
    takers = [layout.name for layout in others if Finder((), (layout,), asked=True).could_match(name)]
    way_out = f"pruned only with --layout {takers[0]}" if len(takers) == 1 else "not what its name says"
    return f"{kinds.a(verdict.kind)} checkpoint, {way_out}"
