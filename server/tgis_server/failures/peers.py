"""Processes that lose each other, and what they send each other (exit code 5)."""

from tgis_server.errors import GroupFailed, PeerLost
from tgis_server.failures.failure import Failure

RANK_SILENT = Failure(
    "rank-silent",
    "a collective times out, and one shard does not answer",
    "{process} does not answer, and the other shards gave up waiting for it ({reason}).",
    GroupFailed,
)
RANK_BEHIND = Failure(
    "rank-behind",
    "a collective times out, and one shard has done fewer steps than the others",
    "{process} is hung in step {step}, and the other shards gave up waiting for it ({reason}).",
    GroupFailed,
)
PEER_LOST = Failure(
    "peer-lost",
    "a connection or a collective breaks; reported only if nothing else is known",
    "{process} lost contact with another process of the group ({reason}), and no other cause is known: see the log "
    "lines above.",
    PeerLost,
)
SHARD_SILENT = Failure(
    "shard-silent",
    "the front-end's health checks of a shard time out",
    "Shard {rank} no longer answers.",
    PeerLost,
)
STEP_HANGS = Failure(
    "step-hangs",
    "a step takes longer than both --step-timeout and ten times its predicted time",
    "Shard {rank} is hung: its current step has run for {age_s:.0f} s, more than {limit}.",
    PeerLost,
)
GROUP_STEP_HANGS = Failure(
    "group-step-hangs",
    "a step takes too long on several shards, because the working ones wait for the hung one",
    "Shards {ranks} are hung: their current step has run for {age_s:.0f} s, more than {limit}; one of them is holding "
    "up the others.",
    PeerLost,
)
STEP_LOOP_HANGS = Failure(
    "step-loop-hangs",
    "a shard answers, but its step loop is stuck between steps",
    "Shard {rank} is hung: its step loop has not answered for {age_s:.0f} s.",
    PeerLost,
)
COLLECTIVE_LOST = Failure(
    "collective-lost",
    "an operation of NCCL or gloo fails",
    "a shard lost contact with the others: {reason}",
    PeerLost,
)
LEADER_GONE = Failure(
    "leader-gone",
    "the plan channel closes without its end marker",
    "The leader shard is gone.",
    PeerLost,
)
LEADER_LATE = Failure(
    "leader-late",
    "a follower cannot connect within --startup-timeout",
    "The leader shard did not open {path} within {timeout_s:.0f} s.",
    PeerLost,
)
FOLLOWER_GONE = Failure(
    "follower-gone",
    "a follower's plan channel breaks",
    "A follower shard no longer accepts plans ({reason}).",
    PeerLost,
)
FOLLOWER_LATE = Failure(
    "follower-late",
    "a follower does not connect within --startup-timeout",
    "{num_missing} shard(s) did not reach the first step within {timeout_s:.0f} s.",
    PeerLost,
)
ENGINE_CLOSED = Failure(
    "engine-closed",
    "the leader ends the front-end's Session",
    "The engine closed its connection to the front-end.",
    PeerLost,
)
ENGINE_LOST = Failure(
    "engine-lost",
    "the Session breaks",
    "The connection to the engine broke: {reason}.",
    PeerLost,
)
ENGINE_REFUSES = Failure(
    "engine-refuses",
    "requests cannot be written to the Session",
    "Requests could not be sent to the engine: {reason}.",
    PeerLost,
)
MESSAGE_UNUSABLE = Failure(
    "message-unusable",
    "a plan or a control message does not fit the state of a shard",
    "{message} cannot be applied: {field} {problem}. This is a defect: report it with the output of `tgis version`.",
    GroupFailed,
)
STEP_TOO_LARGE = Failure(
    "step-too-large",
    "a step runs out of memory on several shards, or twice in a row on one",
    "Step {step} with {num_tokens} tokens of {num_rows} sequences does not fit into memory: {reason}. Lower "
    "--max-batch-tokens, --max-batch-size or --kv-cache-memory.",
    GroupFailed,
)
NO_CAUSE = Failure(
    "no-cause",
    "the group ended, and nothing explains why",
    "The server ended for an unknown reason: see the log lines above.",
    GroupFailed,
)
