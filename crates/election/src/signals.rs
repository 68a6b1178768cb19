//! The table of what each state accepts among signals (ELECTION, "What each state accepts"). Everything
//! else is counted and changes nothing.

use crate::{elector::Elector, output::Output, state::Taking};
use protocol::{
    BootTime, ServerName, VirtualServerName,
    wire::signal::{Body, CLIENTS_MAX, Client, Released, Signal},
};

/// The columns of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Blank, or silent after a restart.
    Silent,
    Slave,
    Candidate,
    Master,
}

impl Elector {
    fn state(&self, name: &VirtualServerName) -> State {
        let v = self.virtuals.get(name);
        if self.taking != Taking::Active {
            State::Silent
        } else if v.is_some_and(|v| v.mastership.is_some()) {
            State::Master
        } else if v.is_some_and(|v| v.campaign.is_some()) {
            State::Candidate
        } else {
            State::Slave
        }
    }

    pub(crate) fn signal(&mut self, now: BootTime, from: ServerName, signal: Signal) {
        if !self.peers.contains_key(&from) {
            return self.count("signal_unlisted");
        }
        let Signal {
            virtual_server: name,
            instance,
            number,
            body,
        } = signal;
        let state = self.state(&name);
        match (body, state) {
            (Body::PreCall { term, lease, round }, _) => {
                self.pre_call(now, &from, &name, term, lease, round)
            }
            (
                Body::PreAnswer {
                    term,
                    round,
                    verdict,
                },
                State::Slave | State::Candidate | State::Master,
            ) => {
                self.pre_answer(now, &from, &name, term, round, verdict);
            }
            (
                Body::Call {
                    term,
                    lease,
                    releases,
                    roster,
                },
                _,
            ) => {
                self.call(
                    now,
                    &from,
                    &name,
                    (instance, number),
                    term,
                    lease,
                    releases,
                    roster,
                );
            }
            (
                Body::Grant {
                    instance,
                    number,
                    term,
                },
                State::Candidate | State::Master,
            ) => {
                self.grant(now, &from, &name, instance, number, term);
            }
            (
                Body::Refuse {
                    instance,
                    number,
                    term,
                    floor,
                    ..
                },
                State::Candidate | State::Master,
            ) => self.refusal(now, &from, &name, instance, number, term, floor),
            (Body::Release { term, invited }, _) => {
                let released = Released {
                    server: from,
                    instance,
                    number,
                };
                self.release(now, &name, released, term, invited, state != State::Silent);
            }
            (Body::ReadyQuery, _) => self.ready_query(now, &from, &name, state == State::Slave),
            (Body::Ready, State::Master) => self.ready(now, &from, &name),
            (Body::NotReady { why }, State::Master) => self.not_ready(now, &from, &name, &why),
            (Body::HandOver { to }, State::Master) => {
                self.asked_to_hand_over(now, &from, &name, &to)
            }
            (Body::Clients { clients }, State::Slave | State::Candidate) => {
                self.clients(&from, name, clients)
            }
            (Body::Clients { .. }, State::Silent | State::Master) => {
                self.count("out_of_state_clients")
            }
            (Body::PreAnswer { .. }, State::Silent) => self.count("out_of_state_pre_answer"),
            (Body::Grant { .. }, State::Silent | State::Slave) => self.count("out_of_state_grant"),
            (Body::Refuse { .. }, State::Silent | State::Slave) => {
                self.count("out_of_state_refuse")
            }
            (Body::Ready, State::Silent | State::Slave | State::Candidate) => {
                self.count("out_of_state_ready")
            }
            (Body::NotReady { .. }, State::Silent | State::Slave | State::Candidate) => {
                self.count("out_of_state_not_ready");
            }
            (Body::HandOver { .. }, State::Silent | State::Slave | State::Candidate) => {
                self.count("out_of_state_hand_over");
            }
        }
    }

    /// What the present master has seen; nobody else's list is taken.
    fn clients(&mut self, from: &ServerName, name: VirtualServerName, clients: Vec<Client>) {
        let master = self.virtuals.get(&name).and_then(|v| v.master.as_ref());
        if master.is_none_or(|(master, _)| master != from) {
            return self.count("clients_not_of_master");
        }
        if clients.len() > CLIENTS_MAX {
            return self.count("clients_too_many");
        }
        self.outputs.push_back(Output::Clients(name, clients));
    }

    pub(crate) fn tell_clients(&mut self, name: &VirtualServerName, clients: &[Client]) {
        if self
            .virtuals
            .get(name)
            .is_none_or(|v| v.mastership.is_none())
        {
            return;
        }
        for peer in self.peers.keys().cloned().collect::<Vec<_>>() {
            self.say(
                &peer,
                name,
                Body::Clients {
                    clients: clients.to_vec(),
                },
            );
        }
    }
}
