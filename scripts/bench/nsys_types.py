"""Column types of nsys's own Parquet export, for tables read from its SQLite export.

SQLite knows only signed 64-bit integers; in Parquet nsys says UInt64, UInt32 and so on (docs/reference/nsys.md).
"""

from __future__ import annotations

import polars as pl

_BY_TYPE: dict[type[pl.DataType], str] = {
    pl.UInt64: "globalVid globalPid globalTid endGlobalTid pid duration startTime stopTime nameId graphNodeId"
    " originalGraphNodeId contextId greenContextId streamId eventSyncId demangledName shortName mangledName"
    " bytes copyKind virtualAddress copyCount rangeId category domainId uint64Value schemaId type flags"
    " numEntries payloadSize alignTo idx arrayOrUnionDetail offset utcEpochNs totalMemory memoryBandwidth"
    " luid priority",
    pl.UInt32: "contentId filenameId eventClass deviceId correlationId eventId launchType cacheConfig"
    " registersPerThread sharedMemoryExecuted sharedMemoryLimitConfig deprecatedSrcId srcKind dstKind"
    " srcDeviceId srcContextId dstDeviceId dstContextId migrationCause memKind value returnValue"
    " deprecatedSyncType syncType eventType color textId uint32Value jsonTextId nullStreamId hwId vmId"
    " processId parentContextId gpuId cudaId flag l2CacheSize clockRate smCount pwGpuId revision nodeMask"
    " constantMemory maxIPC maxRegistersPerBlock maxShmemPerBlock maxShmemPerBlockOptin maxShmemPerSm"
    " maxRegistersPerSm threadsPerWarp asyncEngines maxWarpsPerSm maxBlocksPerSm maxThreadsPerBlock"
    " maxBlockDimX maxBlockDimY maxBlockDimZ maxGridDimX maxGridDimY maxGridDimZ computeMajor computeMinor"
    " smMajor smMinor",
    pl.Int32: "gridX gridY gridZ blockX blockY blockZ staticSharedMemory dynamicSharedMemory"
    " localMemoryPerThread localMemoryTotal int32Value timestampType source severity cuDevice",
    pl.Int64: "start end timestamp gridId callchainId int64Value",
    pl.Float32: "floatValue",
    pl.Boolean: "isDiscrete isGreenContext",
}
_BY_COLUMN = {column: dtype for dtype, columns in _BY_TYPE.items() for column in columns.split()}
_BY_TABLE: dict[tuple[str, str], type[pl.DataType]] = {
    ("ANALYSIS_FILE", "id"): pl.Int32,
    ("StringIds", "id"): pl.Int32,
    ("TARGET_INFO_GPU", "id"): pl.UInt32,
    ("TARGET_INFO_GPU", "vmId"): pl.Int64,
    ("TARGET_INFO_CUDA_CONTEXT_INFO", "contextId"): pl.UInt32,
    ("TARGET_INFO_CUDA_STREAM", "contextId"): pl.UInt32,
    ("TARGET_INFO_CUDA_STREAM", "streamId"): pl.UInt32,
    ("TARGET_INFO_CUDA_STREAM", "priority"): pl.UInt32,
    ("TARGET_INFO_CUDA_DEVICE", "pid"): pl.UInt32,
}


def parquet_frame(table: str, frame: pl.DataFrame) -> pl.DataFrame:
    """Cast a frame of SQLite values to the export's types; negative ids wrap to unsigned ones."""
    casts = []
    for name, dtype in frame.schema.items():
        nsys_dtype = _BY_TABLE.get((table, name), _BY_COLUMN.get(name))
        if nsys_dtype is None or dtype in (pl.String, pl.Binary):
            continue
        wraps = nsys_dtype in (pl.UInt32, pl.UInt64)
        casts.append(pl.col(name).cast(nsys_dtype, wrap_numerical=wraps))
    return frame.with_columns(casts)
