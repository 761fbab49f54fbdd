"""Opening Nsight Systems exports: SQLite files, folders of Parquet files, and reports through nsys."""
