//! Turns: what one stream has to be read never costs another its turn.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::super::driver::{Driver, Event, NEWCOMERS, Token};
use super::{LOCAL, PATIENCE, pair, turn};

const STREAMS: usize = 20;
const READS: usize = 2_000;

/// As much as the socket takes.
fn fill(theirs: &mut TcpStream) {
    let piece = [7; 8 << 10];
    while theirs.write(&piece).is_ok() {}
}

/// Every stream has more to be read than there are buffers, all the time, and a quiet one says a word now and then.
pub(super) fn streams_that_never_stop_get_equal_turns_and_a_quiet_one_is_heard<D: Driver>(mut driver: D) {
    let mut flooding: BTreeMap<Token, (TcpStream, usize)> = (0..STREAMS)
        .map(|_| {
            let (token, mut theirs) = pair(&mut driver);
            theirs.set_nonblocking(true).unwrap();
            fill(&mut theirs);
            (token, (theirs, 0))
        })
        .collect();
    let (quiet, mut word) = pair(&mut driver);
    let (mut reads, mut since_word, mut longest) = (0, None, 0);
    turn(&mut driver, |driver, event| {
        let Event::Received { token, buffer } = event else { panic!("unexpected {event:?}") };
        reads += 1;
        if token == quiet {
            longest = longest.max(since_word.take().map_or(0, |at: usize| reads - at));
        } else if let Some((theirs, bytes)) = flooding.get_mut(&token) {
            *bytes += buffer.len();
            fill(theirs);
        }
        driver.recycle(buffer);
        if reads % 100 == 0 && since_word.is_none() {
            word.write_all(b"word").unwrap();
            since_word = Some(reads);
        }
        reads >= READS
    });
    let shares: Vec<usize> = flooding.values().map(|&(_, bytes)| bytes).collect();
    let mean = shares.iter().sum::<usize>() / STREAMS;
    assert!(shares.iter().all(|&share| share > mean / 3 && share < 3 * mean), "{shares:?}");
    assert!(longest > 0 && longest <= 3 * STREAMS, "the quiet stream waited for {longest} reads of others");
}

pub(super) fn newcomers_are_read_last_and_a_few_at_a_time<D: Driver>(mut driver: D) {
    let listener = TcpListener::bind(LOCAL).unwrap();
    let mut newcomers: BTreeMap<Token, TcpStream> = (0..STREAMS)
        .map(|_| {
            let theirs = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            (driver.newcomer(listener.accept().unwrap().0.into()).unwrap(), theirs)
        })
        .collect();
    let (known, mut word) = pair(&mut driver);
    // Polls are armed and all have something to say before anybody is read.
    driver.wait(Some(Duration::ZERO)).unwrap();
    for theirs in newcomers.values_mut() {
        theirs.write_all(b"hello").unwrap();
    }
    word.write_all(b"word").unwrap();
    let (mut heard, mut rounds, mut known_in_round) = (0, 0, None);
    let deadline = Instant::now() + PATIENCE;
    while heard < STREAMS || known_in_round.is_none() {
        assert!(Instant::now() < deadline, "nothing happens any more");
        driver.wait(Some(Duration::from_millis(100))).unwrap();
        rounds += 1;
        let before = heard;
        while let Some(event) = driver.next_event() {
            let Event::Received { token, buffer } = event else { panic!("unexpected {event:?}") };
            if token == known {
                assert_eq!(heard, before, "newcomers come after it");
                known_in_round = Some(rounds);
            } else {
                heard += 1;
            }
            driver.recycle(buffer);
        }
        assert!(heard - before <= NEWCOMERS);
    }
    // Once they are welcome they are like any other, whatever was under way for them.
    let mut missing = STREAMS;
    for (&token, theirs) in &mut newcomers {
        driver.welcome(token);
        theirs.write_all(b"again").unwrap();
    }
    turn(&mut driver, |driver, event| {
        let Event::Received { buffer, .. } = event else { panic!("unexpected {event:?}") };
        driver.recycle(buffer);
        missing -= 1;
        missing == 0
    });
}
