//! `make bench`: the agent beside direct connections, kube-proxy's rules and other proxies,
//! in private namespaces of this machine, without a cluster.
//!
//! Whoever is compared takes turns (A B C A B C …) within one run of one part, so that what
//! else the machine does meets all of them. A figure is the median of all rounds, with the
//! least and the greatest; absolute ones are this machine's, ratios within one table count.
//!
//! * [`part`]: what is measured, each part in a lab of its own.
//! * [`contender`]: who takes part, and how each is set up.
//! * [`load`]: clients and servers.
//! * [`results`], [`spread`], [`histogram`]: figures. [`report`], [`table`], [`plot`],
//!   [`goals`]: what is made of them.

pub mod arguments;
pub mod contender;
pub mod goals;
pub mod histogram;
pub mod load;
pub mod machine;
pub mod part;
pub mod plot;
pub mod processes;
pub mod report;
pub mod results;
pub mod spread;
pub mod stage;
pub mod table;
