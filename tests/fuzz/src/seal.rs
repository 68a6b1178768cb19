//! Unsealing: raw bytes open nothing; a sealed packet opens as it was, with one bit changed or to another server not
//! at all; and what stands under the seal may be anything.

use crate::{codec::READING_MAX, meter};
use arbitrary::{Result, Unstructured};
use protocol::{
    ServerName,
    codec::{MESSAGE_MAX, encode},
    seal::{Channel, Context, NONCE, Sealer},
    wire::datagram::{self, DATAGRAM_MAX, MAGIC, Packet, PacketError},
};

/// Opens what can be made of `bytes`.
pub fn run(bytes: &[u8]) {
    let _ = open(Unstructured::new(bytes));
}

fn open(mut u: Unstructured<'_>) -> Result<()> {
    let sealer = Sealer::new(&[[1; 32], [2; 32]], "web");
    let name = |text: &str| {
        text.parse::<ServerName>()
            .map_err(|_| arbitrary::Error::IncorrectFormat)
    };
    let (alpha, beta) = (name("alpha")?, name("beta")?);
    let context = |channel| Context {
        version: 2,
        channel,
        from: &alpha,
        to: &beta,
    };
    let clear = [&MAGIC[..], &[2]].concat();
    let (kind, nonce, changed): (u8, [u8; NONCE], u32) =
        (u.arbitrary()?, u.arbitrary()?, u.arbitrary()?);
    let contents = u.take_rest();

    // Whoever has no key: nothing opens, whatever it looks like.
    for start in [&[][..], &clear] {
        let forged = [start, &nonce, contents].concat();
        assert!(
            !matches!(
                read(&sealer, &alpha, &beta, &forged),
                Ok(_) | Err(PacketError::Malformed(_))
            ),
            "opened without a key"
        );
    }
    for channel in [Channel::Udp, Channel::Tcp] {
        assert!(sealer.open(&context(channel), contents).is_err());
    }

    // Whoever has it, perhaps the second key: the contents come out as they went in.
    let sealed = sealer.seal(&context(Channel::Udp), nonce, contents);
    assert_eq!(
        sealer.open(&context(Channel::Udp), &sealed).as_deref(),
        Ok(contents)
    );
    assert!(sealer.open(&context(Channel::Tcp), &sealed).is_err());
    let mut datagram = [&clear[..], &sealed].concat();
    match read(&sealer, &alpha, &beta, &datagram) {
        Ok((_, packet)) => assert!(encode(&packet).is_ok()),
        Err(PacketError::Malformed(_)) => {}
        Err(e) => panic!("the own seal does not open: {e}"),
    }
    assert!(
        read(&sealer, &beta, &alpha, &datagram).is_err(),
        "sent back to its sender"
    );
    let bit = changed as usize % (datagram.len() * 8);
    datagram[bit / 8] ^= 1 << (bit % 8);
    assert!(
        read(&sealer, &alpha, &beta, &datagram).is_err(),
        "bit {bit} changed"
    );
    if kind == 0 {
        datagram.resize(DATAGRAM_MAX + 1, 0);
        assert!(read(&sealer, &alpha, &beta, &datagram).is_err());
    }
    Ok(())
}

/// The text under the seal is as long as the datagram, and read once.
fn read(
    sealer: &Sealer,
    from: &ServerName,
    to: &ServerName,
    bytes: &[u8],
) -> std::result::Result<(u8, Packet), PacketError> {
    let text = 2 * bytes.len().max(MESSAGE_MAX);
    meter::within(READING_MAX + text, || {
        datagram::open(sealer, from, to, bytes)
    })
}
