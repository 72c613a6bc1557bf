//! Values of the language: each type holds what is valid, and nothing else.

mod duration;
mod key;
mod name;
pub(crate) mod number;
mod template;
mod text;
mod url;

pub use duration::{Interval, OrNever, Staleness, StopOr, Wait};
pub use key::{KeyTemplate, MergeValue, ResourceKey};
pub use name::{GroupName, HeaderName, Headers, Name, ResourceName, VariableName};
pub use number::{Bytes, Count, Fraction};
pub use template::{
    ChannelMessage, ChannelPattern, ConditionText, Credential, CredentialFields, JsonPath, UrlFields, UrlPath,
};
pub use text::{Command, Payload, Text};
pub use url::{HttpUrl, LiveUrl, ServerUrl, UrlOrigin};

pub(crate) use template::token_of;
pub(crate) use url::{is_host, origin_of};
