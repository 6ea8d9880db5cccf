"""Write ckptd's systemd units: one text for the templates that are shipped and for what `ckptd unit` prints.

Only text: installing, enabling and starting is the operator's business, and the first lines say how.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError

MAX_NAME_BYTES = 255  # of a unit's name, and of a file's


def render(
    work_dir: Path | None,
    options: Sequence[str] = (),
    *,
    command: str = "/usr/local/bin/ckptd",
    user: bool = False,
    also_writable: str = "",
) -> str:
    """The unit that watches `work_dir` with `options` of `ckptd watch`; for the system, or for a user.

    also_writable: a directory elsewhere in which it writes too, absolute.

    Without a work dir: the template `ckptd@.service`, whose instance names it, and files hold the options.
    """
    for text in (command, *options, also_writable):
        _refuse_unwritable(text)
    if work_dir is None:
        where, head = _Where.of_instance(user=user), _head_of_template(user=user)
    else:
        where, head = _Where.of_path(_absolute(work_dir)), _head_of_finished(unit_name(work_dir), user=user)
    writable = " ".join([where.writable, *([_word(f"-{also_writable}")] if also_writable else [])])
    sections = [
        head,
        _UNIT.format(text=where.text, word=where.word),
        _SERVICE.format(
            # The colon: a $ in a name or in an option begins no variable.
            exec_start=" ".join([_word(f":{command}"), "watch", where.word, *map(_word, options)]),
            # The plus: the process is the owner's by then, and root without CAP_KILL may not signal it.
            exec_reload=f"{'' if user else '+'}/bin/kill -HUP $MAINPID",
            environment_files="".join(f"EnvironmentFile=-{path}\n" for path in where.environment_files),
        ),
        _USER_SANDBOX if user else _SYSTEM_SANDBOX.format(writable=writable),
        _SECCOMP.format(allowed="@chown ioprio_set" if user else "@chown @setuid ioprio_set"),
        _INSTALL.format(target="default.target" if user else "multi-user.target"),
    ]
    return "\n".join(sections)


def unit_name(work_dir: Path) -> str:
    """A name for this work dir's unit, escaped as systemd-escape does it: `ckptd-home-alice-run.service`."""
    path = _absolute(work_dir)
    name = f"ckptd-{_escape_path(path)}.service"
    if len(name) > MAX_NAME_BYTES:
        return f"ckptd-{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.service"
    return name


@dataclass(frozen=True)
class _Where:
    """The work dir as the settings name it: as a word of a list, as text, and for the sandbox."""

    word: str
    text: str
    writable: str
    environment_files: tuple[str, ...] = ()

    @classmethod
    def of_instance(cls, *, user: bool) -> _Where:
        # Not %i.env: the value is a glob pattern, and the \x2d of an escaped dash would there mean "x2d".
        folder = "%E/ckptd" if user else "/etc/ckptd"
        return cls("%f", "%f", "-%f", (f"{folder}/ckptd.env", f"{folder}%f.env"))

    @classmethod
    def of_path(cls, path: str) -> _Where:
        return cls(_word(path), _percents(path), _word(f"-{path}"))


def _absolute(work_dir: Path) -> str:
    path = os.path.abspath(work_dir)
    _refuse_unwritable(path)
    return path.replace("//", "/", 1) if path.startswith("//") else path  # POSIX gives // a meaning, Linux none


def _refuse_unwritable(text: str) -> None:
    """A unit is lines of UTF-8, and not every setting has an escape for what is not."""
    if re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", text):
        raise UsageError(
            f"{text!r}: a systemd unit cannot hold control characters, nor bytes that are not UTF-8. "
            "Rename it, or link to it under another name."
        )


def _word(text: str) -> str:
    """One word of a list, whatever is in it."""
    escaped = _percents(text).replace("\\", "\\\\").replace('"', '\\"')
    return escaped if re.fullmatch(r"[\w:@%+=.,/{}<>-]+", escaped) else f'"{escaped}"'


def _percents(text: str) -> str:
    return text.replace("%", "%%")


def _escape_path(path: str) -> str:
    inner = path.strip("/")
    escaped = "".join(map(_escape_byte, os.fsencode(inner)))
    return "\\x2e" + escaped[1:] if inner.startswith(".") else escaped or "-"


def _escape_byte(byte: int) -> str:
    char = chr(byte)
    if char == "/":
        return "-"
    return char if char in string.ascii_letters + string.digits + ":_." else f"\\x{byte:02x}"


def _head_of_template(*, user: bool) -> str:
    if user:
        return _HEAD_OF_TEMPLATE.format(systemctl="systemctl --user", folder="~/.config/ckptd", last=_LINGER)
    return _HEAD_OF_TEMPLATE.format(systemctl="systemctl", folder="/etc/ckptd", last=_BECOMES_THE_OWNER)


def _head_of_finished(name: str, *, user: bool) -> str:
    quoted = shlex.quote(name)
    if user:
        path, systemctl, last = f"~/.config/systemd/user/{quoted}", "systemctl --user", _LINGER
    else:
        path, systemctl, last = f"/etc/systemd/system/{quoted}", "systemctl", _BECOMES_THE_OWNER
    return _HEAD_OF_FINISHED.format(path=path, systemctl=systemctl, quoted=quoted, last=last)


_HEAD_OF_TEMPLATE = """\
# ckptd beside one work dir: the instance names it, files hold its options.
#
#     {systemctl} enable --now "$(systemd-escape --template=ckptd@.service --path "/home/alice/my run")"
#
# Options are lines such as CKPTD_MAX_KEEP=3: for every work dir in {folder}/ckptd.env, for this one,
# and stronger, in "{folder}/home/alice/my run.env". Where the path has one of *?[ no such file is
# found: `ckptd unit` prints a unit with the options inside, for any path.
{last}"""

_HEAD_OF_FINISHED = """\
# ckptd beside one work dir. Save this as
#
#     {path}
#
# and start it, now and at every boot:
#
#     {systemctl} daemon-reload
#     {systemctl} enable --now {quoted}
#
{last}"""

_BECOMES_THE_OWNER = """\
# It starts as root, and becomes the owner of the work dir before it touches anything. Where root may not
# look (a closed home on NFS), name the owner in a drop-in: User=alice.
"""

_LINGER = """\
# To have it run while you are logged out: loginctl enable-linger
"""

_UNIT = """\
[Unit]
Description=ckptd for {text} (keeps the newest checkpoints)
RequiresMountsFor={word}
After=nss-user-lookup.target
# One that only ever fails is "failed", for all to see, in about three minutes.
StartLimitIntervalSec=10min
StartLimitBurst=30
"""

_SERVICE = """\
[Service]
Type=notify
NotifyAccess=main
ExecStart={exec_start}
ExecReload={exec_reload}
{environment_files}\
# When it hangs it is killed, tells the journal where it hung, and is started again. The first pass may
# have much to read: its signs of life extend the time for the start.
WatchdogSec=5min
TimeoutStartSec=5min
Environment=PYTHONFAULTHANDLER=1
Restart=on-failure
RestartSec=5s
# 75: the work dir was replaced, or has appeared, and only a new start may write there. That is no failure.
SuccessExitStatus=75
RestartForceExitStatus=75
# Wrong use, refused for safety, another ckptd owns the work dir: to try again would only hide it.
RestartPreventExitStatus=2 4 5
# It ends with the rename in hand; a removal that was cut short is finished by the next start.
KillMode=mixed
TimeoutStopSec=30s
Nice=10
IOSchedulingClass=idle
"""

_SYSTEM_SANDBOX = """\
# The minus: a work dir that does not exist yet is waited for. Else the start fails with 226/NAMESPACE.
ReadWritePaths={writable}
ProtectSystem=strict
ProtectHome=read-only
# To find the work dir below a closed home and to become its owner, who then has none of them.
CapabilityBoundingSet=CAP_DAC_READ_SEARCH CAP_SETUID CAP_SETGID
NoNewPrivileges=yes
# Not PrivateTmp=: a work dir may be below /tmp. Not PrivateUsers=: there is no owner in it to become, and
# it hides who has a checkpoint open. ProtectProc= hides only processes whose open files the owner could not
# see anyway. (For a work dir of root, those are root's own: CAP_SYS_PTRACE, added above, shows them.)
ProtectProc=invisible
PrivateMounts=yes
PrivateDevices=yes
PrivateNetwork=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
"""

_USER_SANDBOX = """\
# No Protect*= or Private*=: a user's manager needs a user namespace for them, and from inside one it
# cannot be seen who has a checkpoint open.
NoNewPrivileges=yes
"""

_SECCOMP = """\
RestrictAddressFamilies=AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
SystemCallArchitectures=native
SystemCallErrorNumber=EPERM
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
SystemCallFilter={allowed}
"""

_INSTALL = """\
[Install]
WantedBy={target}
"""
