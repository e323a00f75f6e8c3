//! The golden blocks of `tests/compat/`, which an independent program made: every release opens them, and seals to them.

use super::*;

const GOLDEN: [&str; 6] = [
    include_str!("../../../tests/compat/block-v1-suite1-empty.txt"),
    include_str!("../../../tests/compat/block-v1-suite1-short.txt"),
    include_str!("../../../tests/compat/block-v1-suite1-long.txt"),
    include_str!("../../../tests/compat/block-v1-suite2-empty.txt"),
    include_str!("../../../tests/compat/block-v1-suite2-short.txt"),
    include_str!("../../../tests/compat/block-v1-suite2-long.txt"),
];

fn field<'a>(file: &'a str, name: &str) -> &'a str {
    let mut fields = file.lines().filter_map(|line| line.split_once(" ="));
    fields.find(|(key, _)| *key == name).unwrap().1.trim()
}

#[test]
fn golden_blocks_open_and_are_sealed_to_the_same_bytes() {
    for file in GOLDEN {
        let bytes = |name| hex::decode(field(file, name)).unwrap();
        let version: u32 = field(file, "version").parse().unwrap();
        let (plaintext, ciphertext) = (bytes("plaintext"), bytes("ciphertext"));
        let account = AccountId::from_bytes(&bytes("account")).unwrap();
        let address = Address::new(&bytes("address")).unwrap();
        let header = BlockHeader::parse(&bytes("header")).unwrap();
        assert_eq!((header.aek_version(), header.nonce().to_vec()), (version, bytes("nonce")));
        for &backend in Backend::available() {
            Key::new(bytes("aek").try_into().unwrap()).with(backend, &account, |sealer| {
                let mut buf = ciphertext.clone();
                sealer.open_in_place(&header, &address, &mut buf).unwrap();
                assert_eq!(buf, plaintext, "{backend}");
                let nonce = nonce(&bytes("nonce"));
                let sealed = sealer.seal_with(nonce, header.suite(), version, &address, buf.as_mut_slice().into());
                assert_eq!((sealed.unwrap().as_bytes(), &buf), (&bytes("header")[..], &ciphertext), "{backend}");
            });
        }
    }
}
