"""The tables and columns of an Nsight Systems export that the analysis reads, declared in one place.

Column names are nsys's own. Units: ``start``, ``end`` and ``timestamp`` are nanoseconds since the start of the
capture; ``bytes`` are bytes. Ids are 64-bit; SQLite stores them signed, Parquet unsigned: both are read as Int64.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """One table of an export.

    ``columns`` must be there when the table is; ``optional`` columns read as null where a version of nsys lacks
    them. ``aliases`` are older names of the table. ``text`` names the columns that hold strings; every other one
    is an integer. A row without a value in one of ``filled`` is damage.
    """

    name: str
    columns: tuple[str, ...]
    optional: tuple[str, ...] = ()
    text: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    filled: tuple[str, ...] = ()


_ACTIVITY = ("start", "end", "deviceId", "streamId", "correlationId", "globalPid")

_SPAN = ("start", "end")

KERNEL = Table(
    "CUPTI_ACTIVITY_KIND_KERNEL",
    (*_ACTIVITY, "demangledName"),
    optional=("graphNodeId", "contextId"),
    filled=(*_SPAN, "demangledName"),
)
MEMCPY = Table(
    "CUPTI_ACTIVITY_KIND_MEMCPY",
    (*_ACTIVITY, "bytes", "copyKind"),
    optional=("graphNodeId", "contextId"),
    filled=(*_SPAN, "copyKind"),
)
MEMSET = Table("CUPTI_ACTIVITY_KIND_MEMSET", (*_ACTIVITY, "bytes"), optional=("graphNodeId", "contextId"), filled=_SPAN)
#: One row a whole graph, instead of one a node: what ``--cuda-graph-trace=graph`` records.
GRAPH_TRACE = Table("CUPTI_ACTIVITY_KIND_GRAPH_TRACE", _ACTIVITY, optional=("graphId", "contextId"), filled=_SPAN)
RUNTIME = Table(
    "CUPTI_ACTIVITY_KIND_RUNTIME",
    ("start", "end", "globalTid", "correlationId", "nameId", "returnValue"),
    filled=(*_SPAN, "nameId"),
)
#: nsys 2023.4 calls it CUDA_GRAPH_EVENTS, a name that later versions use for graph-level rows without node ids.
GRAPH_NODES = Table(
    "CUDA_GRAPH_NODE_EVENTS",
    ("start", "globalTid", "graphNodeId", "originalGraphNodeId"),
    aliases=("CUDA_GRAPH_EVENTS",),
    filled=("start", "graphNodeId"),
)
NVTX = Table(
    "NVTX_EVENTS",
    ("start", "end", "eventType", "text", "globalTid", "textId", "domainId"),
    optional=("int64Value", "category"),
    text=("text",),
    filled=("start", "eventType"),
)
#: Read apart from the other columns: declared text, but it holds bytes that are not UTF-8.
NVTX_BLOB = "binaryData"
PAYLOAD_SCHEMAS = Table("NVTX_PAYLOAD_SCHEMAS", ("domainId", "schemaId", "type", "numEntries", "payloadSize"))
PAYLOAD_ENTRIES = Table(
    "NVTX_PAYLOAD_SCHEMA_ENTRIES",
    ("domainId", "schemaId", "idx", "flags", "type", "name", "arrayOrUnionDetail", "offset"),
    text=("name",),
)
STRINGS = Table("StringIds", ("id", "value"), text=("value",), filled=("id", "value"))
PROCESSES = Table("PROCESSES", ("globalPid", "pid"), optional=("name",), text=("name",))
EXPORT_META = Table("META_DATA_EXPORT", ("name", "value"), text=("name", "value"), filled=("name",))
CAPTURE_META = Table("META_DATA_CAPTURE", ("name", "value"), text=("name", "value"), filled=("name",))
SESSION_START = Table("TARGET_INFO_SESSION_START_TIME", ("utcEpochNs",))
DIAGNOSTICS = Table("DIAGNOSTIC_EVENT", ("timestamp", "severity", "text"), text=("text",))
GPU_INFO = Table("TARGET_INFO_GPU", ("id", "name"), text=("name",))
COPY_KINDS = Table("ENUM_CUDA_MEMCPY_OPER", ("id", "label"), text=("label",))

#: Columns of times, and the ns that they lie between (an export may have them as unix time): their differences
#: must not overflow.
TIMES = frozenset({"start", "end", "timestamp"})
LEAST_NS, MOST_NS = -(1 << 61), 1 << 62

#: Tables of GPU work.
OPERATIONS = (KERNEL, MEMCPY, MEMSET, GRAPH_TRACE)
#: Tables of events: in their place a later nsys may write tables of other names.
VERSIONED = (NVTX, *OPERATIONS, RUNTIME, GRAPH_NODES)
#: Everything the analysis reads; ``nvtxmoe trim`` keeps nothing else.
ALL = (
    KERNEL,
    MEMCPY,
    MEMSET,
    GRAPH_TRACE,
    RUNTIME,
    GRAPH_NODES,
    NVTX,
    PAYLOAD_SCHEMAS,
    PAYLOAD_ENTRIES,
    STRINGS,
    PROCESSES,
    EXPORT_META,
    CAPTURE_META,
    SESSION_START,
    DIAGNOSTICS,
    GPU_INFO,
    COPY_KINDS,
)

# Values of NVTX_EVENTS.eventType.
NVTX_MARK = 34
NVTX_PUSH_POP = 59
NVTX_START_END = 60
NVTX_DOMAIN = 75

#: Names of calls that put work on the GPU; version suffixes (_v7000, _ptsz) follow the name.
LAUNCH_PATTERN = r"^(cuda|cu)(LaunchKernel|LaunchCooperativeKernel|GraphLaunch|Memcpy|Memset)"
GRAPH_LAUNCH_PATTERN = r"^(cuda|cu)GraphLaunch"

#: A globalTid is, from its highest bits down, an id of the hardware or virtual machine, a process id of 24 bits and a
#: thread id of 24 bits; a globalPid has 0 for the thread. All bits above the thread identify the process, because two
#: machines or containers can use one process id.
TID_BITS = 24
PID_MASK = 0xFFFFFF
