# Recipes for people. The steps live in .ci/run; these only name them.

# Everything that must hold before a change lands
check *steps:
    .ci/run {{steps}}

# The tests, as the README has them
test:
    cargo test --workspace

# Format in place
fmt:
    cargo fmt --all

# Lints, with the bans of clippy.toml
lint:
    .ci/run clippy

# The promise, shown: one wire, many sessions, killed and frozen primaries
demo *flags:
    cargo run --release --example one_wire -- {{flags}}

# Many seeds in the simulator
seeds count="10000":
    PACELINE_SEEDS={{count}} .ci/run simulator

# One seed of one scenario again, with its trace
replay scenario seed:
    PACELINE_SEED={{seed}} cargo test --release -p paceline-sim --test seeds {{scenario}} -- --nocapture

# Writes the tables of documents anew: limits (docs/PROTOCOL.md) and keys (docs/CONFIG.md)
bless:
    PACELINE_BLESS=1 cargo test -p paceline-tests --test workspace_rules are_the_code
    PACELINE_BLESS=1 cargo test -p paceline-tests --test workspace_rules is_the_code
