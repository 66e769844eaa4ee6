//! `partitions.json`: the partitions that are open, in the pool or under transfer, by name. For the mount's
//! owner and root alone.

use std::path::Path;

use serde_json::{Value, json};

use super::Volume;

impl Volume {
    /// The object of `partitions.json`. Those at rest (small, whole in the pool, not open) are only counted.
    #[must_use]
    pub fn partition_list(&self) -> Value {
        let folder = &self.options.swap_folder;
        let rows = self.engine.rows().into_iter().map(|row| {
            let path = Path::new(&row.path);
            json!({
                "path": path.strip_prefix(folder).unwrap_or(path).to_string_lossy(),
                "status": row.status.as_str(),
                "size": row.size,
                "resident": row.resident,
                "dirty": row.dirty,
                "inflight": row.inflight,
                "read_bytes": row.traffic.read_bytes,
                "written_bytes": row.traffic.written_bytes,
                "handles": row.handles,
                "failures": row.failures,
                "error": row.error.map(|errno| format!("{errno:?}")),
            })
        });
        let rows: Vec<Value> = rows.collect();
        json!({ "partitions": rows, "resting": self.engine.partitions().resting })
    }
}
