//! Pure data layer: query keys, patches, freshness and the replica's values.
