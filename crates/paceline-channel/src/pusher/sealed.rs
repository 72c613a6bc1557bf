//! Opening what is sealed as NaCl's secretbox: XSalsa20 and Poly1305.

use base64::{Engine, engine::general_purpose::STANDARD};
use poly1305::{Poly1305, universal_hash::KeyInit};
use salsa20::{
    XSalsa20,
    cipher::{KeyIvInit, StreamCipher},
};
use serde_json::Value;
use subtle::ConstantTimeEq;

/// Bytes of the tag before the text.
const TAG: usize = 16;

/// A channel's secret. Its `Debug` says nothing.
#[derive(Clone)]
pub(super) struct Key([u8; 32]);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(secret)")
    }
}

impl Key {
    /// From base64, as the server of the application gives it out.
    pub(super) fn read(text: &str) -> Option<Self> {
        STANDARD.decode(text).ok()?.try_into().ok().map(Self)
    }

    /// The JSON in `{"nonce": …, "ciphertext": …}`; text that is no JSON is a text. `None` = it was not sealed by this key.
    pub(super) fn open(&self, sealed: &Value) -> Option<Value> {
        let part = |name: &str| STANDARD.decode(sealed.get(name)?.as_str()?).ok();
        let nonce: [u8; 24] = part("nonce")?.try_into().ok()?;
        let text = String::from_utf8(self.open_box(&nonce, &part("ciphertext")?)?).ok()?;
        Some(serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    fn open_box(&self, nonce: &[u8; 24], sealed: &[u8]) -> Option<Vec<u8>> {
        let (tag, sealed) = sealed.split_at_checked(TAG)?;
        let mut stream = XSalsa20::new(&self.0.into(), &(*nonce).into());
        // The first 32 bytes of the stream are the authenticator's key.
        let mut once = [0; 32];
        stream.apply_keystream(&mut once);
        let expected = Poly1305::new(&once.into()).compute_unpadded(sealed);
        if !bool::from(expected.as_slice().ct_eq(tag)) {
            return None;
        }
        let mut text = sealed.to_vec();
        stream.apply_keystream(&mut text);
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
    }

    /// The example of NaCl's own tests.
    #[test]
    fn the_box_of_nacl_opens_and_a_changed_one_does_not() {
        let key = Key(bytes("1b27556473e985d462cd51197a9a46c76009549eac6474f206c4ee0844f68389")
            .try_into()
            .unwrap());
        let nonce = bytes("69696ee955b62b73cd62bda875fc73d68219e0036b7a0b37").try_into().unwrap();
        let mut sealed = bytes(concat!(
            "f3ffc7703f9400e52a7dfb4b3d3305d98e993b9f48681273c29650ba32fc76ce48332ea7164d96a4476fb8c531a1186a",
            "c0dfc17c98dce87b4da7f011ec48c97271d2c20f9b928fe2270d6fb863d51738b48eeee314a7cc8ab932164548e526ae",
            "90224368517acfeabd6bb3732bc0e9da99832b61ca01b6de56244a9e88d5f9b37973f622a43d14a6599b1f654cb45a74",
            "e355a5",
        ));
        let text = bytes(concat!(
            "be075fc53c81f2d5cf141316ebeb0c7b5228c52a4c62cbd44b66849b64244ffce5ecbaaf33bd751a1ac728d45e6c6129",
            "6cdc3c01233561f41db66cce314adb310e3be8250c46f06dceea3a7fa1348057e2f6556ad6b1318a024a838f21af1fde",
            "048977eb48f59ffd4924ca1c60902e52f0a089bc76897040e082f937763848645e0705",
        ));
        assert_eq!(key.open_box(&nonce, &sealed), Some(text));
        sealed[20] ^= 1;
        assert_eq!(key.open_box(&nonce, &sealed), None);
        assert_eq!(key.open_box(&nonce, &sealed[..15]), None);
    }

    #[test]
    fn what_is_no_box_does_not_open() {
        assert!(Key::read("short").is_none() && Key::read(&STANDARD.encode([7; 31])).is_none());
        let key = Key::read(&STANDARD.encode([7; 32])).unwrap();
        for odd in
            [json!(null), json!("x"), json!({"nonce": "AA==", "ciphertext": "AA=="}), json!({"nonce": 1})]
        {
            assert_eq!(key.open(&odd), None, "{odd}");
        }
        assert_eq!(format!("{key:?}"), "(secret)");
    }
}
