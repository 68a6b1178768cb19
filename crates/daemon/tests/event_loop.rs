//! The ring between event loops of one process, and the operator's requests.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use daemon::{Args, Boot, Event, EventLoop, now};
use mio::{Interest, unix::SourceFd};
use nix::sys::socket::{self as s, MsgFlags, UnixAddr};
use protocol::{
    Role,
    codec::{decode, decode_all, encode},
    local::{
        Hello, HelloAnswer, MAGIC,
        ctl::{CtlReply, CtlRequest},
    },
    version::Since,
};
use std::{
    io::Write,
    os::fd::{AsRawFd, OwnedFd, RawFd},
    path::Path,
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

const CONFIG: &str = r#"
[cluster]
name = "test"
[[server]]
name = "alpha"
address = ["192.0.2.11"]
[[server]]
name = "beta"
address = ["192.0.2.12"]
[[server]]
name = "gamma"
address = ["192.0.2.13"]
"#;

/// Who sends Unix signals to the whole process is alone.
static SIGNALS: Mutex<()> = Mutex::new(());

fn boot(dir: &Path, role: Role) -> Boot {
    let args = Args {
        config: dir.join("standin.toml"),
        run_dir: dir.to_owned(),
        state_dir: dir.to_owned(),
        server: Some("alpha".into()),
    };
    std::fs::write(&args.config, CONFIG).unwrap();
    Boot::new(role, args).unwrap()
}

/// Waits for the first event that `wanted` finds, for at most five seconds.
fn wait_for<T>(looped: &mut EventLoop, mut wanted: impl FnMut(Event) -> Option<T>) -> T {
    let end = now() + Duration::from_secs(5);
    let mut events = Vec::new();
    loop {
        looped.wait(Some(end), &mut events).unwrap();
        for event in events.drain(..) {
            assert!(!matches!(event, Event::Deadline), "nothing came");
            if let Some(found) = wanted(event) {
                return found;
            }
        }
    }
}

/// Gives both loops their turns until `sender` is up.
fn link(sender: &mut EventLoop, to: Role, receiver: &mut EventLoop) {
    let mut events = Vec::new();
    for _ in 0..1000 {
        for looped in [&mut *receiver, &mut *sender] {
            looped
                .wait(Some(now() + Duration::from_millis(2)), &mut events)
                .unwrap();
        }
        if sender.is_up(to) {
            return;
        }
    }
    panic!("no link to {to}");
}

/// Lets the loop work for so many milliseconds. (Unix signals of another test may end a single wait.)
fn run_for(looped: &mut EventLoop, millis: u64) {
    let end = now() + Duration::from_millis(millis);
    let mut events = Vec::new();
    while now() < end {
        looped.wait(Some(end), &mut events).unwrap();
    }
}

fn stranger(dir: &Path, role: Role) -> OwnedFd {
    let flags = s::SockFlag::SOCK_CLOEXEC;
    let socket = s::socket(s::AddressFamily::Unix, s::SockType::SeqPacket, flags, None).unwrap();
    let path = dir.join(format!("{role}.sock"));
    s::connect(socket.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
    socket
}

fn say(socket: &impl AsRawFd, bytes: &[u8]) {
    s::send(socket.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL).unwrap();
}

fn hear(socket: &impl AsRawFd) -> Vec<u8> {
    let mut buffer = vec![0; 4096];
    let n = s::recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()).unwrap_or(0);
    buffer.truncate(n);
    buffer
}

fn hello(role: Role) -> Vec<u8> {
    encode(&Hello {
        magic: MAGIC,
        version: 2,
        role,
    })
    .unwrap()
}

#[test]
fn messages_flow_and_a_lost_neighbour_is_dialled_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut hbd = EventLoop::open(&boot(dir.path(), Role::Hbd), &[], &[Role::Doctord]).unwrap();
    assert!(!hbd.send(Role::Doctord, &1u64), "nobody listens yet");
    for round in 0..2u64 {
        let doctord = boot(dir.path(), Role::Doctord);
        let mut doctord = EventLoop::open(&doctord, &[Role::Hbd], &[]).unwrap();
        link(&mut hbd, Role::Doctord, &mut doctord);
        for i in 0..100u64 {
            assert!(hbd.send(Role::Doctord, &(round, i)));
        }
        let mut got = Vec::new();
        wait_for(&mut doctord, |e| {
            if let Event::Message { from, bytes, .. } = e {
                assert_eq!(from, Role::Hbd);
                got.push(decode::<(u64, u64)>(&bytes).unwrap());
            }
            (got.len() == 100).then_some(())
        });
        assert!(got.iter().enumerate().all(|(i, m)| *m == (round, i as u64)));
        drop(doctord);
        wait_for(&mut hbd, |e| {
            matches!(e, Event::Down(Role::Doctord)).then_some(())
        });
        assert!(!hbd.is_up(Role::Doctord));
    }
    assert_eq!(hbd.counters()["local_link_doctord"], 2);
}

#[test]
fn queued_messages_leave_together_before_the_loop_waits_and_in_order_with_those_sent() {
    let dir = tempfile::tempdir().unwrap();
    let mut doctord = EventLoop::open(&boot(dir.path(), Role::Doctord), &[Role::Hbd], &[]).unwrap();
    let mut hbd = EventLoop::open(&boot(dir.path(), Role::Hbd), &[], &[Role::Doctord]).unwrap();
    link(&mut hbd, Role::Doctord, &mut doctord);
    let mut packet = || {
        wait_for(&mut doctord, |e| match e {
            Event::Message { bytes, .. } => Some(bytes),
            _ => None,
        })
    };
    let messages = |bytes: &[u8]| {
        decode_all::<u64>(bytes, 2)
            .map(|m| m.unwrap())
            .collect::<Vec<_>>()
    };
    (1..=3u64).for_each(|i| assert!(hbd.queue(Role::Doctord, &i)));
    hbd.wait(Some(daemon::now()), &mut Vec::new()).unwrap();
    assert_eq!(messages(&packet()), [1, 2, 3]);
    assert!(hbd.queue(Role::Doctord, &4u64) && hbd.send(Role::Doctord, &5u64));
    assert_eq!(messages(&packet()), [4, 5]);
    // Many, or long ones, do not wait for the end of the round.
    (0..20u64).for_each(|i| assert!(hbd.queue(Role::Doctord, &i)));
    assert_eq!(messages(&packet()).len(), 16);
    hbd.wait(Some(daemon::now()), &mut Vec::new()).unwrap();
    assert_eq!(messages(&packet()), [16, 17, 18, 19]);
    let long = vec![7u8; 40_000];
    assert!(hbd.queue(Role::Doctord, &long) && hbd.queue(Role::Doctord, &long));
    assert_eq!(decode::<Vec<u8>>(&packet()).unwrap(), long);
    // Nobody there any more: all are counted.
    drop(doctord);
    wait_for(&mut hbd, |e| {
        matches!(e, Event::Down(Role::Doctord)).then_some(())
    });
    assert!(!hbd.queue(Role::Doctord, &6u64));
    let lost = hbd.counters()["local_unsent_doctord_down"];
    assert_eq!(lost, 2, "the second long one and 6");
}

#[test]
fn the_receiver_is_told_when_a_neighbour_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let mut doctord = EventLoop::open(&boot(dir.path(), Role::Doctord), &[Role::Hbd], &[]).unwrap();
    let mut hbd = EventLoop::open(&boot(dir.path(), Role::Hbd), &[], &[Role::Doctord]).unwrap();
    link(&mut hbd, Role::Doctord, &mut doctord);
    drop(hbd);
    wait_for(&mut doctord, |e| {
        matches!(e, Event::PeerGone(Role::Hbd)).then_some(())
    });
}

#[test]
fn a_neighbour_that_does_not_read_costs_messages_and_no_time() {
    let dir = tempfile::tempdir().unwrap();
    let mut doctord = EventLoop::open(&boot(dir.path(), Role::Doctord), &[Role::Hbd], &[]).unwrap();
    let mut hbd = EventLoop::open(&boot(dir.path(), Role::Hbd), &[], &[Role::Doctord]).unwrap();
    link(&mut hbd, Role::Doctord, &mut doctord);
    let message = vec![7u8; 10_000];
    let sent = (0..1000)
        .filter(|_| hbd.send(Role::Doctord, &message))
        .count();
    assert!(sent > 5 && sent < 1000, "{sent}");
    assert_eq!(
        hbd.counters()["local_unsent_doctord_full"],
        1000 - sent as u64
    );
    assert!(hbd.is_up(Role::Doctord));
    assert!(
        !hbd.send(Role::Doctord, &vec![0u8; 70_000]),
        "longer than any message"
    );
    let mut got = 0;
    wait_for(&mut doctord, |e| {
        got += usize::from(matches!(e, Event::Message { .. }));
        (got == sent).then_some(())
    });
}

#[test]
fn garbage_closes_that_connection_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let mut doctord = EventLoop::open(&boot(dir.path(), Role::Doctord), &[Role::Hbd], &[]).unwrap();
    let mut hbd = EventLoop::open(&boot(dir.path(), Role::Hbd), &[], &[Role::Doctord]).unwrap();
    link(&mut hbd, Role::Doctord, &mut doctord);
    let mut wrong_magic = hello(Role::Hbd);
    wrong_magic[0] ^= 1;
    let greetings = [
        b"garbage".to_vec(),
        wrong_magic,
        vec![0xff; 3000],
        vec![0; 65_000],
    ];
    let sockets: Vec<OwnedFd> = greetings
        .iter()
        .map(|greeting| {
            let socket = stranger(dir.path(), Role::Doctord);
            say(&socket, greeting);
            socket
        })
        .collect();
    assert!(hbd.send(Role::Doctord, &5u64));
    wait_for(&mut doctord, |e| {
        matches!(e, Event::Message { .. }).then_some(())
    });
    run_for(&mut doctord, 20);
    for socket in &sockets {
        assert!(hear(socket).is_empty(), "closed");
    }
    assert_eq!(doctord.counters()["local_refused_garbage"], 3);
    assert!(hbd.send(Role::Doctord, &6u64), "the neighbour is untouched");
}

#[test]
fn other_versions_and_uninvited_roles_are_refused_in_words() {
    let dir = tempfile::tempdir().unwrap();
    let mut doctord = EventLoop::open(&boot(dir.path(), Role::Doctord), &[Role::Hbd], &[]).unwrap();
    let old = encode(&Hello {
        magic: MAGIC,
        version: 0,
        role: Role::Hbd,
    })
    .unwrap();
    for (greeting, expected) in [
        (old, "version"),
        (hello(Role::Listend), "no messages of listend"),
    ] {
        let socket = stranger(dir.path(), Role::Doctord);
        say(&socket, &greeting);
        run_for(&mut doctord, 50);
        match decode(&hear(&socket)).unwrap() {
            HelloAnswer::Refused(why) => assert!(why.contains(expected), "{why}"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(doctord.counters()["local_refused_hello"], 2);
}

/// A neighbour of the release before there was a choice: it takes the first version only.
fn former_release(dir: &Path, role: Role) -> OwnedFd {
    let flags = s::SockFlag::SOCK_CLOEXEC;
    let socket = s::socket(s::AddressFamily::Unix, s::SockType::SeqPacket, flags, None).unwrap();
    let path = dir.join(format!("{role}.sock"));
    s::bind(socket.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
    s::listen(&socket, s::Backlog::new(8).unwrap()).unwrap();
    socket
}

/// Takes the next connection, answers its hello as the former release does, and gives the version asked for.
fn answer_as_former_release(listener: &OwnedFd) -> (RawFd, u16) {
    let socket = s::accept(listener.as_raw_fd()).unwrap();
    let Hello { version, .. } = decode(&hear(&socket)).unwrap();
    let answer = match version {
        1 => HelloAnswer::Welcome,
        _ => HelloAnswer::Refused("restart the older".to_owned()),
    };
    say(&socket, &encode(&answer).unwrap());
    (socket, version)
}

#[test]
fn a_neighbour_of_the_release_before_is_spoken_to_in_its_version() {
    let dir = tempfile::tempdir().unwrap();
    let doctord = former_release(dir.path(), Role::Doctord);
    let mut hbd = EventLoop::open(&boot(dir.path(), Role::Hbd), &[], &[Role::Doctord]).unwrap();
    let mut asked = Vec::new();
    for _ in 0..2 {
        run_for(&mut hbd, 20);
        asked.push(answer_as_former_release(&doctord));
    }
    run_for(&mut hbd, 20);
    assert!(hbd.is_up(Role::Doctord));
    assert_eq!([asked[0].1, asked[1].1], [2, 1]);
    let message = (8u64, Since::<2, u64>(7));
    assert!(hbd.send(Role::Doctord, &message));
    let got = hear(&asked[1].0);
    assert_eq!(got, encode(&8u64).unwrap(), "nothing of later versions");
    // It is replaced.
    for (socket, _) in asked {
        nix::unistd::close(socket).unwrap();
    }
    drop(doctord);
    std::fs::remove_file(dir.path().join("doctord.sock")).unwrap();
    let boot = boot(dir.path(), Role::Doctord);
    let mut doctord = EventLoop::open(&boot, &[Role::Hbd], &[]).unwrap();
    link(&mut hbd, Role::Doctord, &mut doctord);
    assert!(hbd.send(Role::Doctord, &message));
    let got = wait_for(&mut doctord, |e| match e {
        Event::Message { version, bytes, .. } => Some((version, bytes)),
        _ => None,
    });
    assert_eq!(got, (2, encode(&message).unwrap()));
}

#[test]
fn an_operator_asks_a_role_of_the_release_before_in_its_version() {
    let dir = tempfile::tempdir().unwrap();
    let electd = former_release(dir.path(), Role::Electd);
    let path = dir.path().to_owned();
    let operator = thread::spawn(move || {
        let timeout = Duration::from_secs(5);
        daemon::ctl::call(&path, Role::Electd, &CtlRequest::Resign, timeout)
    });
    assert_eq!(answer_as_former_release(&electd).1, 2);
    let (socket, version) = answer_as_former_release(&electd);
    assert_eq!(version, 1);
    assert_eq!(
        decode::<CtlRequest>(&hear(&socket)).unwrap(),
        CtlRequest::Resign
    );
    let no = CtlReply::No("not master".into());
    say(&socket, &encode(&no).unwrap());
    assert_eq!(operator.join().unwrap().unwrap(), no);
}

#[test]
fn whoever_asks_for_a_later_version_is_told_which_there_are() {
    let dir = tempfile::tempdir().unwrap();
    let mut doctord = EventLoop::open(&boot(dir.path(), Role::Doctord), &[Role::Hbd], &[]).unwrap();
    let ask = |version, doctord: &mut EventLoop| {
        let socket = stranger(dir.path(), Role::Doctord);
        let role = Role::Hbd;
        let magic = MAGIC;
        say(
            &socket,
            &encode(&Hello {
                magic,
                version,
                role,
            })
            .unwrap(),
        );
        run_for(doctord, 20);
        decode::<HelloAnswer>(&hear(&socket)).unwrap()
    };
    let (oldest, newest) = (1, 2);
    assert_eq!(ask(9, &mut doctord), HelloAnswer::Speaks { oldest, newest });
    assert_eq!(ask(1, &mut doctord), HelloAnswer::Welcome);
    assert_eq!(ask(2, &mut doctord), HelloAnswer::Welcome);
}

#[test]
fn connections_are_bounded_and_the_silent_ones_are_closed() {
    let dir = tempfile::tempdir().unwrap();
    let mut doctord = EventLoop::open(&boot(dir.path(), Role::Doctord), &[Role::Hbd], &[]).unwrap();
    let mut sockets = Vec::new();
    for _ in 0..3 {
        sockets.extend((0..30).map(|_| stranger(dir.path(), Role::Doctord)));
        run_for(&mut doctord, 20);
    }
    assert_eq!(doctord.counters()["local_closed_full"], 90 - 64);
    // A neighbour gets in all the same, and stays when more come.
    let mut hbd = EventLoop::open(&boot(dir.path(), Role::Hbd), &[], &[Role::Doctord]).unwrap();
    link(&mut hbd, Role::Doctord, &mut doctord);
    sockets.extend((0..90).map(|_| stranger(dir.path(), Role::Doctord)));
    run_for(&mut doctord, 20);
    run_for(&mut hbd, 20);
    assert!(hbd.is_up(Role::Doctord));
    drop(hbd);
    run_for(&mut doctord, 1200);
    assert_eq!(doctord.counters()["local_closed_idle"], 63);
    let mut hbd = EventLoop::open(&boot(dir.path(), Role::Hbd), &[], &[Role::Doctord]).unwrap();
    link(&mut hbd, Role::Doctord, &mut doctord);
}

#[test]
fn a_flood_of_requests_takes_a_part_of_the_time_and_delays_no_neighbour() {
    let dir = tempfile::tempdir().unwrap();
    let mut doctord = EventLoop::open(&boot(dir.path(), Role::Doctord), &[Role::Hbd], &[]).unwrap();
    let request = encode(&CtlRequest::Status).unwrap();
    let flood: Vec<_> = (0..40)
        .map(|_| stranger(dir.path(), Role::Doctord))
        .collect();
    for socket in &flood {
        say(socket, &hello(Role::Standin));
        (0..100).for_each(|_| say(socket, &request));
    }
    let mut hbd = EventLoop::open(&boot(dir.path(), Role::Hbd), &[], &[Role::Doctord]).unwrap();
    link(&mut hbd, Role::Doctord, &mut doctord);
    let (mut events, start) = (Vec::new(), now());
    let (mut rounds, mut messages, mut busy) = (0, 0, Duration::ZERO);
    while now().since(start) < Duration::from_millis(300) {
        hbd.send(Role::Doctord, &7u8);
        doctord
            .wait(Some(now() + Duration::from_millis(50)), &mut events)
            .unwrap();
        let asked = events
            .iter()
            .filter(|e| matches!(e, Event::Ctl { .. }))
            .count();
        messages += events
            .iter()
            .filter(|e| matches!(e, Event::Message { .. }))
            .count();
        assert!(asked <= 8, "{asked} requests in one round");
        if asked > 0 {
            // What answering takes.
            thread::sleep(Duration::from_millis(2));
            busy += Duration::from_millis(2);
        }
        rounds += 1;
    }
    assert!(busy < Duration::from_millis(150), "{busy:?} of 300 ms");
    assert!(
        busy > Duration::ZERO && messages + 2 >= rounds,
        "{messages} messages in {rounds} rounds"
    );
}

#[test]
fn an_operator_gets_an_answer() {
    let dir = tempfile::tempdir().unwrap();
    let mut electd = EventLoop::open(&boot(dir.path(), Role::Electd), &[], &[]).unwrap();
    let path = dir.path().to_owned();
    let operator = thread::spawn(move || {
        daemon::ctl::call(
            &path,
            Role::Electd,
            &CtlRequest::Resign,
            Duration::from_secs(5),
        )
    });
    let conn = wait_for(&mut electd, |e| match e {
        Event::Ctl { conn, request } => {
            assert_eq!(request, CtlRequest::Resign);
            Some(conn)
        }
        _ => None,
    });
    electd.reply(conn, &CtlReply::No("not master".into()));
    assert_eq!(
        operator.join().unwrap().unwrap(),
        CtlReply::No("not master".into())
    );
    let timeout = Duration::from_millis(50);
    let silent = daemon::ctl::call(dir.path(), Role::Electd, &CtlRequest::Status, timeout);
    assert!(silent.unwrap_err().to_string().contains("electd.sock"));
    let absent = daemon::ctl::call(dir.path(), Role::Hbd, &CtlRequest::Status, timeout);
    assert!(absent.unwrap_err().to_string().contains("standin run"));
}

#[test]
fn a_second_daemon_of_a_role_is_refused_and_a_left_over_socket_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let boot = boot(dir.path(), Role::Hbd);
    let first = EventLoop::open(&boot, &[], &[]).unwrap();
    let second = EventLoop::open(&boot, &[], &[]).err().unwrap().to_string();
    assert!(second.contains("another hbd"), "{second}");
    drop(first);
    assert!(dir.path().join("hbd.sock").exists());
    EventLoop::open(&boot, &[], &[]).unwrap();
}

#[test]
fn a_run_dir_with_too_long_a_path_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let long = dir.path().join("x".repeat(120));
    let error = EventLoop::open(&boot_in(&long), &[], &[])
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("--run-dir"), "{error}");
}

fn boot_in(dir: &Path) -> Boot {
    std::fs::create_dir_all(dir).unwrap();
    boot(dir, Role::Hbd)
}

#[test]
fn deadlines_sources_wakers_and_unix_signals_arrive() {
    let _alone = SIGNALS.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = tempfile::tempdir().unwrap();
    let mut hbd = EventLoop::open(&boot(dir.path(), Role::Hbd), &[], &[]).unwrap();
    let mut events = Vec::new();
    let deadline = now() + Duration::from_millis(10);
    hbd.wait(Some(deadline), &mut events).unwrap();
    assert!(matches!(events[..], [Event::Deadline]), "{events:?}");
    assert!(now() >= deadline);
    hbd.wait(Some(deadline), &mut events).unwrap();
    assert!(
        matches!(events[..], [Event::Deadline]),
        "a deadline in the past: {events:?}"
    );

    let (reader, mut writer) = std::io::pipe().unwrap();
    let fd = reader.as_raw_fd();
    hbd.register(&mut SourceFd(&fd), 7, Interest::READABLE)
        .unwrap();
    writer.write_all(b"x").unwrap();
    wait_for(&mut hbd, |e| {
        matches!(
            e,
            Event::Source {
                id: 7,
                readable: true,
                ..
            }
        )
        .then_some(())
    });
    hbd.deregister(&mut SourceFd(&fd)).unwrap();

    let waker = hbd.waker();
    thread::spawn(move || waker.wake().unwrap());
    wait_for(&mut hbd, |e| matches!(e, Event::Woken).then_some(()));

    for (signal, reload) in [("HUP", true), ("TERM", false), ("INT", false)] {
        let signal: nix::sys::signal::Signal = format!("SIG{signal}").parse().unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::this(), signal).unwrap();
        wait_for(&mut hbd, |e| match e {
            Event::Reload => reload.then_some(()),
            Event::Terminate => (!reload).then_some(()),
            _ => None,
        });
    }
}

#[test]
fn at_a_halt_who_carries_electds_messages_ends_after_electd_has_gone() {
    let _alone = SIGNALS.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = tempfile::tempdir().unwrap();
    let mut hbd = EventLoop::open(&boot(dir.path(), Role::Hbd), &[Role::Electd], &[]).unwrap();
    let mut electd = EventLoop::open(&boot(dir.path(), Role::Electd), &[], &[Role::Hbd]).unwrap();
    link(&mut electd, Role::Hbd, &mut hbd);
    nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::SIGTERM).unwrap();
    wait_for(&mut electd, |e| matches!(e, Event::Terminate).then_some(()));
    let end = now() + Duration::from_millis(100);
    let mut events = Vec::new();
    while now() < end {
        hbd.wait(Some(end), &mut events).unwrap();
        assert!(!events.iter().any(|e| matches!(e, Event::Terminate)));
    }
    drop(electd);
    wait_for(&mut hbd, |e| matches!(e, Event::Terminate).then_some(()));
}

#[test]
fn a_socket_that_another_program_removed_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let mut hbd = EventLoop::open(&boot(dir.path(), Role::Hbd), &[], &[]).unwrap();
    let path = dir.path().join("hbd.sock");
    std::fs::remove_file(&path).unwrap();
    run_for(&mut hbd, 1100);
    let operator = stranger(dir.path(), Role::Hbd);
    say(&operator, &hello(Role::Standin));
    run_for(&mut hbd, 20);
    assert_eq!(
        decode::<HelloAnswer>(&hear(&operator)).unwrap(),
        HelloAnswer::Welcome
    );
}

#[test]
fn a_role_starts_from_the_kept_configuration_while_the_file_is_bad() {
    let dir = tempfile::tempdir().unwrap();
    let main = boot(dir.path(), Role::Main);
    main.keep_config();
    let args = main.args.clone();
    let text = std::fs::read_to_string(&main.args.config).unwrap();
    let nothing = |boot: &Boot| {
        let detail = protocol::local::status::Detail::Main { roles: Vec::new() };
        boot.status(Default::default(), Vec::new(), detail)
    };
    let bad = format!("{text}[time]\nhaertbeat = 1\n");
    for (written, told) in [
        (Some(&bad), "standin.toml:14: [time] haertbeat"),
        (None, "cannot be read"),
    ] {
        match written {
            Some(text) => std::fs::write(&args.config, text).unwrap(),
            None => std::fs::remove_file(&args.config).unwrap(),
        }
        let mut electd = Boot::new(Role::Electd, args.clone()).unwrap();
        assert_eq!(electd.config.cluster.name, "test");
        let notes = nothing(&electd).notes;
        assert!(notes[0].contains(told), "{notes:?}");
        assert!(electd.reload().is_err());
        std::fs::write(&args.config, text.replace("\"test\"", "\"new\"")).unwrap();
        electd.reload().unwrap();
        assert_eq!(electd.config.cluster.name, "new");
        let status = nothing(&electd);
        assert!(status.notes.is_empty(), "{:?}", status.notes);
        assert_eq!(status.counters[daemon::RELOADS], 1);
        assert_eq!(status.counters[daemon::RELOADS_REFUSED], 1);
    }
    std::fs::remove_file(dir.path().join("last-good.toml")).unwrap();
    std::fs::write(&args.config, bad).unwrap();
    assert!(Boot::new(Role::Electd, args).is_err(), "nothing is kept");
}

#[test]
fn a_bad_reload_keeps_the_old_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let mut boot = boot(dir.path(), Role::Hbd);
    let write = |text: String| std::fs::write(dir.path().join("standin.toml"), text).unwrap();
    let old = boot.config.clone();
    write(CONFIG.replace("[cluster]", "[clutser]"));
    assert!(
        boot.reload()
            .unwrap_err()
            .to_string()
            .contains("did you mean \"cluster\"")
    );
    assert_eq!(boot.config, old);
    write(CONFIG.replace("name = \"test\"", "name = \"test\"\nlease = \"1s\""));
    boot.reload().unwrap();
    assert_eq!(boot.config.cluster.lease, Duration::from_secs(1));
}
