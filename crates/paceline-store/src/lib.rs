//! Durable queue database of one epoch: group commit, adoption by reference, fold.
