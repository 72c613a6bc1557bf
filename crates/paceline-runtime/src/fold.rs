//! How the hub folds patches and compares contents: the data layer's rules, supplied to the pure hub.

use bytes::Bytes;
use paceline_proto::hub::Fold;
use paceline_query::patch::Patch;

/// JSON values, patches of `paceline-query`.
pub(crate) struct JsonFold;

impl Fold for JsonFold {
    fn fold(&self, old: Option<&[u8]>, patch: &[u8]) -> Result<Bytes, String> {
        let patch = Patch::from_bytes(patch).map_err(|error| error.to_string())?;
        patch.apply(old).map(Bytes::from).map_err(|error| error.to_string())
    }

    fn hash(&self, value: &[u8]) -> u64 {
        paceline_query::content_hash(value)
    }
}
