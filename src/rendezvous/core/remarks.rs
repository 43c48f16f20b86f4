//! What people should know of a round. Once: it is mostly the same in the next one.

use std::collections::VecDeque;

/// How many remarks are remembered, so that none is made twice.
const REMARKS: usize = 16;

#[derive(Default)]
pub struct Remarks {
    last: Option<String>,
    said: VecDeque<String>,
}

impl Remarks {
    pub fn say(&mut self, remark: String) {
        if !self.said.contains(&remark) {
            self.last = Some(remark.clone());
            self.said.push_back(remark);
            if self.said.len() > REMARKS {
                self.said.pop_front();
            }
        }
    }

    /// Of the last round.
    pub fn last(&self) -> Option<&String> {
        self.last.as_ref()
    }

    pub fn begin_anew(&mut self) {
        self.last = None;
    }
}
