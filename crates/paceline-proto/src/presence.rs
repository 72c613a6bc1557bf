//! What a session tells the group about its user.

use serde::{Deserialize, Serialize};

/// Visibility, focus, activity and power of a session. The default is a visible, active session on mains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Presence {
    /// Its user can see it.
    pub visible: bool,
    /// It has the user's focus.
    pub focused: bool,
    /// The user did something lately.
    pub active: bool,
    /// Battery charge in percent while on battery.
    pub battery: Option<u8>,
}

impl Default for Presence {
    fn default() -> Self {
        Self { visible: true, focused: false, active: true, battery: None }
    }
}
