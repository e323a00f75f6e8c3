use super::*;
use crate::audit::vkey::{Mac, Vkey};
use proptest::prelude::*;
use std::sync::Arc;
use zeroize::Zeroizing;

// The vectors of golang.org/x/mod/sumdb/note, on which C2SP's signed-note stands.
const PETER: &str = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
const ENOCH: &str = "EnochRoot+af0cfe78+ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop";
const TEXT: &str =
    "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n";
const PETER_SIGNED: &str = "\u{2014} PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n";
const ENOCH_SIGNED: &str =
    "\u{2014} EnochRoot rwz+eBzmZa0SO3NbfRGzPCpDckykFXSdeX+MNtCOXm2/5n2tiOHp+vAF1aGrQ5ovTG01oOTGwnWLox33WWd1RvMc+QQ=\n";

// A checkpoint of Sigstore's log, by its key: vectors of transparency-dev/formats.
const REKOR: &str = "rekor.sigstore.dev+c0d23d6a+AjBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABNhtmPtrWm3U1eQXBogSMdGvXwBcK5AW5i0hrZLOC96l+smGNM7nwZ4QvFK/4sueRoVj//QP22Ni4Qt9DPfkWLc=";
const REKOR_NOTE: &str = "Rekor\n798034\nf+7CoKgXKE/tNys9TTXcr/ad6U/K3xvznmzew9y6SP0=\n\n\u{2014} rekor.sigstore.dev wNI9ajBEAiARInWIWyCdyG27CO6LPnPekyw20qO0YJfoaPaowGp/XgIgc+qEHS3+GKVClgqq20uDLet7MCoTURUCRdxwWBHHufk=\n";

fn keys(vkeys: &[&str]) -> Keys {
    vkeys.iter().fold(Keys::new(), |keys, vkey| keys.with(Vkey::parse(vkey).unwrap()))
}

fn verify(note: &str, vkeys: &[&str]) -> Result<()> {
    Note::parse(note.as_bytes())?.verify(&keys(vkeys))
}

#[test]
fn notes_of_the_reference_implementation_verify() {
    let both = format!("{TEXT}\n{PETER_SIGNED}{ENOCH_SIGNED}");
    let note = Note::parse(both.as_bytes()).unwrap();
    assert_eq!(note.text(), TEXT);
    assert_eq!(note.to_string(), both);
    verify(&both, &[PETER]).unwrap();
    verify(&both, &[PETER, ENOCH]).unwrap();
    verify(&both, &[ENOCH, ENOCH]).unwrap();
    verify(REKOR_NOTE, &[REKOR]).unwrap();
    for vkey in [PETER, ENOCH, REKOR] {
        assert_eq!(Vkey::parse(vkey).unwrap().to_string(), vkey);
    }
}

#[test]
fn the_examples_of_the_specifications_are_read() {
    let sun = "Ognuno sta solo sul cuor della terra\ntrafitto da un raggio di sole:\n\ned è subito sera.\n\n\u{2014} quasimodo.example/salvatore NnugSzTjtVAewIS+Z/iJhUPeFDkO/5QQ2i5ddnGITLlC+EhfLW9oJKONrMouFSQU0xMcXxj99ihAQwaqP3ZekRwNtIc=\n";
    let note = Note::parse(sun.as_bytes()).unwrap();
    assert!(note.text().ends_with("raggio di sole:\n\ned è subito sera.\n"), "the text may have an empty line");
    assert_eq!(note.to_string(), sun);
    let sofa = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n\u{2014} example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n";
    let checkpoint = crate::audit::Checkpoint::of(&Note::parse(sofa.as_bytes()).unwrap()).unwrap();
    assert_eq!(
        (&*checkpoint.origin, checkpoint.size, checkpoint.time),
        ("example.com/behind-the-sofa", 20_852_163, None)
    );
}

#[test]
fn who_did_not_sign_is_not_believed() {
    let peter = format!("{TEXT}\n{PETER_SIGNED}");
    for (note, vkeys) in [
        (&peter, &[][..]),
        (&peter, &[ENOCH]),
        (&peter.replace("cryptography", "cryptographY"), &[PETER]),
        // One signature is right, and the other is said to be of a key that is trusted, and is not.
        (&format!("{peter}{}", ENOCH_SIGNED.replace("5n2ti", "5n3ti")), &[PETER, ENOCH]),
        (&REKOR_NOTE.replace("798034", "798035"), &[REKOR]),
        (&REKOR_NOTE.replace("rekor.sigstore.dev ", "bananas.sigstore.dev "), &[REKOR]),
    ] {
        let error = verify(note, vkeys).unwrap_err();
        assert!(matches!(error, Error::Corrupt(Corrupt::Note(_))), "{error}");
    }
    // What nobody knows is passed over, as new kinds of signature have to be.
    verify(&format!("{peter}{}", ENOCH_SIGNED.replace("5n2ti", "5n3ti")), &[PETER]).unwrap();
}

#[test]
fn malformed_notes_are_refused() {
    let signed = PETER_SIGNED;
    for bad in [
        String::new(),
        TEXT.into(),
        format!("{TEXT}\n"),
        format!("{TEXT}\n{}", signed.trim_end()),
        format!("\u{1}{TEXT}\n{signed}"),
        format!("{TEXT}\r\n{signed}"),
        format!("{TEXT}\n{}", signed.replace("PeterNeumann", "Peter Neumann")),
        format!("{TEXT}\n{}", signed.replace("PeterNeumann", "Peter+Neumann")),
        format!("{TEXT}\n{}", signed.replace("PeterNeumann", "")),
        format!("{TEXT}\n{signed}Unexpected line.\n"),
        format!("{TEXT}\n\u{2014} PeterNeumann x08gow==\n"),
        format!("{TEXT}\n{}", signed.replace("nAM=", "nAN=")),
        format!("{TEXT}\n{}", signed.repeat(17)),
        format!("{}\n{signed}", TEXT.repeat(200)),
    ] {
        let error = Note::parse(bad.as_bytes()).unwrap_err();
        assert!(matches!(error, Error::Corrupt(Corrupt::Note(_))), "{error}");
    }
    assert!(Note::parse(&[&b"\xff"[..], TEXT.as_bytes(), b"\n", signed.as_bytes()].concat()).is_err());
    verify(&format!("{TEXT}\n{}", signed.repeat(16)), &[PETER]).unwrap();
}

#[test]
fn a_mangled_key_is_no_key() {
    for (vkey, name) in [(PETER, 0), (REKOR, "rekor.sigstore.dev".len())] {
        // The name is in the id of an Ed25519 key, and not in that of one of ECDSA.
        let begins = (0..vkey.len()).filter(|from| *from == 0 || *from >= name);
        for (from, to) in begins.flat_map(|from| (from + 1..=vkey.len()).map(move |to| (from, to))) {
            assert!(vkey.len() == to - from || Vkey::parse(&vkey[from..to]).is_err(), "{}", &vkey[from..to]);
        }
        for at in 0..vkey.len() {
            let mut other = vkey.as_bytes().to_vec();
            other[at] += 1;
            assert!(at < name || Vkey::parse(std::str::from_utf8(&other).unwrap()).is_err(), "byte {at}");
        }
    }
    for bad in [
        // A key of another length and of a kind that nobody knows, each with the id that it would have.
        "PeterNeumann+cc469956+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TWBADKEY==",
        "PeterNeumann+173116ae+ZRpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
    ] {
        assert!(Vkey::parse(bad).is_err(), "{bad}");
    }
    assert!(Vkey::ed25519("a b", &[1; 32]).is_err());
    let small_order = [&[1][..], &[0; 31]].concat().try_into().unwrap();
    assert!(Vkey::ed25519("a", &small_order).is_err(), "everything is signed under it");
    assert!(Vkey::p256("a", &[4; 65]).is_err(), "not on the curve");
    assert!(Vkey::hmac("a", &[]).is_err() && Vkey::hmac("a", &[0; 65]).is_err());
}

/// A note by a key of each kind, and those who trust it.
fn signed(kind: &str) -> (Note, Keys, Vkey) {
    use ed25519_dalek::Signer;
    let name = "keyleash/0123456789abcdef";
    let note = Note::new("keyleash/0123456789abcdef/a\n7\nAAAA\n").unwrap();
    let text = note.text().as_bytes();
    let (vkey, raw) = match kind {
        "ed25519" => {
            let key = ed25519_dalek::SigningKey::from_bytes(&[3; 32]);
            (Vkey::ed25519(name, key.verifying_key().as_bytes()).unwrap(), key.sign(text).to_bytes().to_vec())
        }
        "p256" => {
            let key = p256::ecdsa::SigningKey::from_slice(&[3; 32]).unwrap();
            let point = key.verifying_key().to_sec1_point(false).as_bytes().try_into().unwrap();
            let signature: p256::ecdsa::Signature = key.sign(text);
            (Vkey::p256(name, &point).unwrap(), signature.to_bytes().to_vec())
        }
        _ => {
            let key = Zeroizing::new(vec![3; 32]);
            let vkey = Vkey::hmac(name, b"\0\x01id").unwrap();
            let mac = key.mac(text).unwrap().to_vec();
            let note = note.clone().signed(vkey.signature(&mac).unwrap());
            return (note, Keys::new().with_mac(vkey.clone(), Arc::new(key)), vkey);
        }
    };
    (note.signed(vkey.signature(&raw).unwrap()), Keys::new().with(vkey.clone()), vkey)
}

#[test]
fn each_kind_of_key_signs_its_text_and_no_other() {
    for kind in ["ed25519", "p256", "hmac"] {
        let (note, keys, vkey) = signed(kind);
        note.verify(&keys).unwrap();
        assert_eq!(vkey.is_public(), kind != "hmac");
        assert_eq!(Vkey::parse(&vkey.to_string()).unwrap(), vkey);
        let bytes = note.to_string().into_bytes();
        assert_eq!(Note::parse(&bytes).unwrap(), note);
        for at in 0..bytes.len() {
            let mut other = bytes.clone();
            other[at] ^= 1;
            let refused = Note::parse(&other).and_then(|note| note.verify(&keys));
            assert!(refused.is_err(), "{kind}: byte {at} was changed unnoticed");
        }
        assert!(vkey.signature(&[0; 5]).is_err());
    }
}

#[test]
fn an_hmac_is_verified_by_its_key_alone_and_without_it_nobody_is_told_that_it_is_right() {
    let (note, _, vkey) = signed("hmac");
    let error = note.verify(&Keys::new().with(vkey.clone())).unwrap_err();
    assert!(matches!(&error, Error::Invalid(text) if text.contains("in its token")), "{error}");
    let other = Keys::new().with_mac(vkey, Arc::new(Zeroizing::new(vec![4; 32])));
    assert!(matches!(note.verify(&other).unwrap_err(), Error::Corrupt(_)));
}

#[test]
fn checkpoints_and_what_retention_left_are_printed_as_they_are_read() {
    use crate::audit::{Checkpoint, Retained, tree::Frontier};
    let mut frontier = Frontier::new();
    (0..7).for_each(|n| frontier.append([n; 32]));
    let checkpoint = Checkpoint::new("keyleash/0123456789abcdef/a", &frontier, 1_764_150_000);
    let note = Note::new(checkpoint.text()).unwrap();
    assert_eq!(Checkpoint::of(&note).unwrap(), checkpoint);
    assert!(Retained::of(&note).is_err());
    let retained = Retained::new("keyleash/0123456789abcdef/a", frontier, 1_764_150_000);
    let note = Note::new(retained.text()).unwrap();
    assert_eq!(Retained::of(&note).unwrap(), retained);
    assert_ne!(Checkpoint::of(&note).unwrap().origin, retained.origin, "the one is never taken for the other");
    let text = checkpoint.text();
    for bad in [
        text.replace("\n7\n", "\n07\n"),
        text.replace("\n7\n", "\n+7\n"),
        text.replace("\n7\n", "\n9007199254740993\n"),
        text.replace("\n7\n", "\n7\n\n"),
        text.replace("keyleash/", "keyleash /"),
        text.replace("=\n", "\n"),
        "a\n7\n".into(),
        "\n".into(),
    ] {
        assert!(Checkpoint::of(&Note::new(bad.clone()).unwrap()).is_err(), "{bad}");
    }
}

proptest! {
    #[test]
    fn no_bytes_are_a_panic(bytes: Vec<u8>, text in "(\\PC|\n|\u{2014} |keyleash/a |AAAAAAAA|[0-9])*") {
        let _ = Note::parse(&bytes);
        let _ = Vkey::parse(&text);
        if let Ok(note) = Note::parse(text.as_bytes()) {
            let _ = (crate::audit::Checkpoint::of(&note), crate::audit::Retained::of(&note));
        }
    }
}
