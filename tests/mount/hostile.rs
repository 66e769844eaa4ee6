//! Clients that mean harm, or are badly written: nobody else may suffer from them.

mod beside;
mod http;
mod killed;
mod many;
mod odd;
mod prepared;
mod pretended;
mod privilege;
mod rights;
mod sandbox;
mod shares;
mod stacked;
mod values;
