use super::*;

#[test]
fn nothing_begins_while_somebody_works_on_the_queue() {
    let mut state = State { withheld: 1, waiting: 1, ..State::default() };
    let now = Moment::default();
    assert!(!state.wanted(now) && !state.begin(&(0..=0), 1, now) && state.is_quiet());
    state.withheld = 0;
    assert!(state.wanted(now) && state.begin(&(0..=0), 1, now) && !state.is_quiet());
    state.end_run();
    state.returning = true;
    assert!(!state.is_quiet(), "what was fetched is not back yet");
    state.lose_session();
    assert!(state.is_quiet());
}

#[test]
fn what_was_fetched_stays_when_more_is_asked_for() {
    let (mut state, now) =
        (State { waiting: 1, bands: vec![Band::default(), Band::default()], ..State::default() }, Moment::default());
    assert!(state.begin(&(0..=1), 1, now));
    let delivery = lapin::message::Delivery::mock(7, "".into(), "q".into(), false, b"body".to_vec());
    state.add(1, Message::new(delivery, std::time::SystemTime::now()), now);
    state.end_run();
    assert!(!state.is_quiet(), "it lies here and has to be given back if nobody takes it");
    assert!(state.begin(&(0..=1), 4, now));
    assert_eq!((state.bands[1].open, state.take_fetched()), (0, vec![7]));
    state.end_run();
    assert!(state.is_quiet());
}

#[test]
fn a_line_that_was_idle_fetches_no_more_than_is_asked_for() {
    let (mut state, now) = (State { demand: 1, bands: vec![Band::default()], ..State::default() }, Moment::default());
    for tag in 1..9 {
        assert!(state.begin(&(0..=0), state.window(64), now));
        assert_eq!(state.consuming, Some((tag, 1)), "one is asked for");
        let delivery = lapin::message::Delivery::mock(tag, "".into(), "q".into(), false, b"body".to_vec());
        state.add(0, Message::new(delivery, std::time::SystemTime::now()), now);
        state.end_run();
        assert_eq!(state.take_fetched(), [tag]);
    }
}

#[test]
fn an_older_look_answers_no_newer_question() {
    let (mut state, now) = (State::default(), Moment::default());
    state.ask(now);
    let question = state.question;
    state.ask(now);
    state.answer(question, true);
    assert!(!state.looked, "this look began before the second question");
    state.answer(state.question, false);
    assert!(state.is_answered() && !state.looked, "the server hesitates");
    state.answer(state.question, true);
    assert!(state.looked);
    state.ask(now);
    assert!(!state.looked);
    (state.paused, state.looked, state.paused_until) = (true, true, now + IDLE);
    state.ask(now);
    assert!(state.looked, "paused a moment ago");
    state.ask(now + IDLE);
    assert!(!state.looked, "paused at some time");
}

#[test]
fn a_settle_of_a_session_that_is_over_says_nothing_of_what_is_open_now() {
    let mut state = State { epoch: 8, bands: vec![Band { open: 2, ..Band::default() }], ..State::default() };
    state.consuming = Some((3, 4));
    [1, 2].into_iter().for_each(|tag| state.unsettled.add(tag));
    assert_eq!(state.words(7, &[1, 2]), None);
    state.open_no_more(7, [(1, 0, 3)].into_iter());
    assert_eq!(state.bands[0].open, 2);
    state.open_no_more(8, [(1, 0, 3)].into_iter());
    assert_eq!((state.words(8, &[2]), state.bands[0].open), (Some(vec![(2, false)]), 1));
}
