//! Clients that mean harm, or are badly written: nobody else may suffer from them.

mod deep;
mod exchanged;
mod http;
mod killed;
mod many;
mod odd;
mod prepared;
mod pretended;
mod rights;
mod spoilt;
mod stacked;
mod values;
