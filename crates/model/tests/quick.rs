//! Every scenario at its quick depth.

use model::{
    run,
    scenario::{self, Depth},
};

#[test]
fn every_scenario_holds_at_its_quick_depth() {
    let mut states = 0;
    for scenario in scenario::all(Depth::Quick) {
        let (name, bounds) = (scenario.name, scenario.bounds());
        let outcome = run::explore(scenario, 2).unwrap_or_else(|e| panic!("{name}: {e}"));
        println!("{name:13} {outcome} ({bounds})");
        let path = outcome.path.join("\n");
        assert_eq!(outcome.caught(), None, "in {name}\n{path}");
        states += outcome.states;
    }
    assert!(
        states > 100_000,
        "only {states} states: the bounds are too tight"
    );
}
